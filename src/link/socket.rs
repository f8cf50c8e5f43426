//! What is set on a TCP socket before and after it is connected, and whether it is still alive (wire.md 1.2, 1.6).
//!
//! TCP_NODELAY is always on: a batch leaves in one vectored write, so that the segments are as full as with the kernel's
//! `tcp-cork`, and nothing waits for a timer. SO_KEEPALIVE is not used; liveness is P_PING.

use std::io;
use std::net::SocketAddr;

use rustix::net::RecvFlags;
use tokio::net::{TcpSocket, TcpStream};

use super::config::LinkConfig;

/// A socket of the address family of `addr`, with the configured buffer sizes, which count only when they are set before
/// the connection exists.
pub(super) fn open(config: &LinkConfig, addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if config.sndbuf_bytes != 0 {
        socket.set_send_buffer_size(config.sndbuf_bytes)?;
    }
    if config.rcvbuf_bytes != 0 {
        socket.set_recv_buffer_size(config.rcvbuf_bytes)?;
    }
    // A listener must come up again while sockets of the link before are still in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Whether the peer has neither closed nor reset the connection. Bytes that wait to be read, or none, are both fine.
pub(super) fn is_alive(stream: &TcpStream) -> bool {
    match peek(stream) {
        Ok(count) => count != 0,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Whether bytes wait to be read.
pub(super) fn has_input(stream: &TcpStream) -> bool {
    peek(stream).is_ok_and(|count| count != 0)
}

fn peek(stream: &TcpStream) -> io::Result<usize> {
    let mut byte = [0_u8; 1];
    let (_, count) =
        rustix::io::retry_on_intr(|| rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT))?;
    Ok(count)
}
