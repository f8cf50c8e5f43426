//! File name patterns as glob(3) knows them: `*`, `?`, `[a-z]`, `[!x]`, `\x`; no braces, no tilde. Results are sorted.
//!
//! Pure: directories are listed through the [`Loader`]. A leading dot is matched only by a dot.

use super::parser::Loader;

/// Most paths that one pattern may match; arbitrary, far beyond any real directory of resources.
const MATCHES_MAX: usize = 100_000;

/// Whether `text` holds a character that makes it a pattern.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The directory part of a path, without the last slash; empty for a bare name.
#[must_use]
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) => "/",
        Some(at) => &path[..at],
        None => "",
    }
}

/// `dir/name`, or `name` where that is absolute or `dir` is empty.
#[must_use]
pub fn join(dir: &str, name: &str) -> String {
    match dir {
        _ if name.starts_with('/') => name.to_owned(),
        "" => name.to_owned(),
        "/" => format!("/{name}"),
        _ => format!("{dir}/{name}"),
    }
}

/// All existing paths that match `pattern`, sorted.
pub fn expand(pattern: &str, loader: &mut dyn Loader) -> Vec<String> {
    if !is_pattern(pattern) {
        let path = pattern.replace('\\', "");
        let path = if loader.canonical(pattern).is_some() { pattern.to_owned() } else { path };
        return if loader.canonical(&path).is_some() { vec![path] } else { Vec::new() };
    }
    let (mut paths, rest) = match pattern.strip_prefix('/') {
        Some(rest) => (vec!["/".to_owned()], rest),
        None => (vec![String::new()], pattern),
    };
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for dir in paths {
            if !is_pattern(part) {
                next.push(join(&dir, part));
                continue;
            }
            let names = loader.list(&dir).unwrap_or_default();
            next.extend(names.iter().filter(|name| matches(part, name)).map(|name| join(&dir, name)));
            next.truncate(MATCHES_MAX);
        }
        paths = next;
    }
    paths.retain(|path| loader.canonical(path).is_some());
    paths.sort();
    paths.dedup();
    paths
}

/// Whether one path component matches one pattern component.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // Positions behind the last star, to return to: linear memory, quadratic time at worst.
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if let Some(len) = one(&pattern[p..], name[n]) {
            p += len;
            n += 1;
            continue;
        }
        let Some((behind, at)) = star else { return false };
        star = Some((behind, at + 1));
        (p, n) = (behind, at + 1);
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Length of the pattern element at the begin of `pattern` if it matches `c`.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['[', rest @ ..] => match class(rest, c) {
            Some((true, len)) => Some(1 + len),
            Some((false, _)) => None,
            // No closing bracket: a plain character.
            None => (c == '[').then_some(1),
        },
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        [plain, ..] => (*plain == c).then_some(1),
        [] => None,
    }
}

/// Whether `c` is in the bracket class whose inside begins at `pattern`, and its length with the closing bracket.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some('!' | '^'));
    let mut at = usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            return Some((found != negated, at + 1));
        }
        if pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2).is_some_and(|high| *high != ']') {
            found |= (low..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= low == c;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_match_as_glob_does() {
        for (pattern, name, expected) in [
            ("*.res", "r0.res", true),
            ("*.res", ".hidden.res", false),
            (".*.res", ".hidden.res", true),
            ("*.res", "r0.res~", false),
            ("r?.res", "r0.res", true),
            ("r?.res", "r.res", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn paths_split_and_join() {
        assert_eq!((parent("a/b"), parent("b"), parent("/b")), ("a", "", "/"));
        assert_eq!((join("a", "b"), join("", "b"), join("a", "/b")), ("a/b".into(), "b".into(), "/b".into()));
    }
}
