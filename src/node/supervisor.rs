//! What happens when a resource's thread panics: that resource ends, as after a crash, and the daemon goes on.
//!
//! tokio catches a panic inside a task, so the thread itself would not notice. The panic hook runs in the thread that
//! panics: it writes the log line, and where the thread is a shard it leaves a mark that the shard's main task waits for.

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::rc::Rc;

use tokio::sync::Notify;

/// The mark of one shard.
#[derive(Debug, Default)]
pub struct Poison {
    text: RefCell<Option<String>>,
    set: Notify,
}

thread_local! {
    static POISON: RefCell<Option<Rc<Poison>>> = const { RefCell::new(None) };
}

impl Poison {
    /// The mark of this thread, which is a shard from now on.
    pub fn of_this_thread() -> Rc<Self> {
        let poison = Rc::new(Self::default());
        POISON.with(|slot| *slot.borrow_mut() = Some(Rc::clone(&poison)));
        poison
    }

    /// Ends when something in this thread has panicked; says where and why.
    pub async fn panicked(&self) -> String {
        loop {
            if let Some(text) = self.text.borrow().clone() {
                return text;
            }
            self.set.notified().await;
        }
    }

    fn mark(&self, text: String) {
        self.text.borrow_mut().get_or_insert(text);
        self.set.notify_one();
    }
}

/// Makes panics end up in the log, and shards notice theirs. Once a process.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(on_panic));
}

fn on_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let what = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned());
    let place = info.location().map_or_else(String::new, |location| format!(" at {location}"));
    let text = format!("{what}{place}");
    let thread = std::thread::current();
    tracing::error!(thread = thread.name().unwrap_or("?"), "internal error: {text}");
    mark_this_thread(text);
}

/// For a test that keeps its own hook.
#[cfg(test)]
pub(super) fn mark_thread(info: &PanicHookInfo<'_>) {
    mark_this_thread(info.to_string());
}

fn mark_this_thread(text: String) {
    // During the end of a thread its locals may be gone.
    let _ = POISON.try_with(|slot| {
        if let Ok(slot) = slot.try_borrow()
            && let Some(poison) = slot.as_ref()
        {
            poison.mark(text);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_task_is_noticed_by_its_own_thread_only() {
        install_panic_hook();
        let shard = |fails: bool| {
            std::thread::spawn(move || {
                let poison = Poison::of_this_thread();
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                tokio::task::LocalSet::new().block_on(&runtime, async move {
                    let task = tokio::task::spawn_local(async move { assert!(!fails, "on purpose") });
                    let ended = task.await.is_ok();
                    tokio::select! {
                        biased;
                        text = poison.panicked() => Some(text),
                        () = std::future::ready(()) => { assert!(ended); None }
                    }
                })
            })
        };
        let (good, bad) = (shard(false), shard(true));
        assert_eq!(good.join().expect("no panic"), None);
        let text = bad.join().expect("caught").expect("noticed");
        assert!(text.starts_with("on purpose at "), "{text}");
        let _ = std::panic::take_hook();
    }
}
