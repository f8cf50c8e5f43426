//! The socket of an NBD client, unix or TCP, at rest and registered with a runtime.
//!
//! Owns: the descriptor. Gives out: readiness, vectored reads and writes. Invariant: a short read or write clears the
//! readiness, so that a socket that was emptied costs no second system call to find that out.

use std::io::{self, IoSlice, IoSliceMut};
use std::net;
use std::os::unix::net as unix;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::frontend::nbd::export::Negotiated;

/// A socket that belongs to no runtime, on its way between threads. Non-blocking.
#[derive(Debug)]
pub enum Socket {
    /// Local.
    Unix(unix::UnixStream),
    /// Remote.
    Tcp(net::TcpStream),
}

/// A client that has finished negotiating, on its way to the resource's thread.
#[derive(Debug)]
pub struct Connection {
    /// Non-blocking, registered nowhere.
    pub socket: Socket,
    /// What was agreed on.
    pub negotiated: Negotiated,
    /// Bytes of the transmission phase that were received already.
    pub leftover: Vec<u8>,
    /// The client, for people: "fio (pid 4711, uid 0)" or "192.0.2.1:40000".
    pub peer: String,
}

/// A socket in the current runtime.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Registers `socket` with the current runtime.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Self::Unix(UnixStream::from_std(socket)?)
            }
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Self::Tcp(TcpStream::from_std(socket)?)
            }
        })
    }

    /// Takes the socket out of the runtime.
    pub(super) fn into_socket(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(stream) => Socket::Unix(stream.into_std()?),
            Self::Tcp(stream) => Socket::Tcp(stream.into_std()?),
        })
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Reads what is there; 0 is the end of the stream (`slices` must not be empty).
    pub(super) fn try_read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        self.transfer(Interest::READABLE, wanted, || match self {
            Self::Unix(stream) => rustix::io::readv(stream, slices),
            Self::Tcp(stream) => rustix::io::readv(stream, slices),
        })
    }

    /// Writes what the socket takes.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        self.transfer(Interest::WRITABLE, wanted, || match self {
            Self::Unix(stream) => rustix::io::writev(stream, slices),
            Self::Tcp(stream) => rustix::io::writev(stream, slices),
        })
    }

    fn transfer(
        &self,
        interest: Interest,
        wanted: usize,
        mut call: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = 0;
        let call = || {
            moved = call()?;
            // "Would block" is how tokio is told to forget the readiness; a racing event is not lost, it counts ticks.
            if moved > 0 && moved < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        let result = match self {
            Self::Unix(stream) => stream.try_io(interest, call),
            Self::Tcp(stream) => stream.try_io(interest, call),
        };
        if moved > 0 { Ok(moved) } else { result.map(|()| 0) }
    }
}
