//! Replication addresses: `[ipv4|sci|ssocks|sdp] A.B.C.D:PORT`, `ipv6 [ADDR]:PORT`.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Parsed, Parser};
use crate::config::ast::Address;
use crate::config::diag::Diagnostic;
use crate::config::lexer::{Kind, Token};
use crate::config::values::Family;

impl Parser<'_, '_, '_> {
    /// An address. One that is well formed but impossible is reported and comes back as `None`.
    pub(super) fn address(&mut self) -> Parsed<Option<Address>> {
        if self.peek().is_keyword("ipv6") {
            self.next();
            return self.ipv6();
        }
        let family = match (self.peek().kind, self.peek().text.as_str()) {
            (Kind::Keyword, "ipv4") => Some(Family::Ipv4),
            (Kind::Keyword, "sci" | "ssocks") => Some(Family::Ssocks),
            (Kind::Keyword, "sdp") => Some(Family::Sdp),
            _ => None,
        };
        if family.is_some() {
            self.next();
        }
        let token = self.peek().clone();
        if token.kind != Kind::Ipv4 {
            return Err(self.no_address(&token));
        }
        self.next();
        let port = self.port()?;
        let ip = token.text.parse::<Ipv4Addr>();
        let Ok(ip) = ip else {
            let error = Diagnostic::error(token.pos, format!("'{}' is no IPv4 address", token.text));
            self.syntax(error.help("each of the four numbers is 0..255, without leading zeros"));
            return Ok(None);
        };
        Ok(port.map(|port| Address {
            family: family.unwrap_or(Family::Ipv4),
            text: token.text,
            ip: IpAddr::V4(ip),
            zone: None,
            port,
            pos: token.pos,
        }))
    }

    fn ipv6(&mut self) -> Parsed<Option<Address>> {
        self.op('[')?;
        let token = self.eat("an IPv6 address", |t| t.kind == Kind::Ipv6)?;
        self.op(']')?;
        let port = self.port()?;
        let (number, zone) = match token.text.split_once('%') {
            Some((number, zone)) => (number, Some(zone.to_owned())),
            None => (token.text.as_str(), None),
        };
        let Ok(ip) = number.parse::<Ipv6Addr>() else {
            self.syntax(Diagnostic::error(token.pos, format!("'{number}' is no IPv6 address")));
            return Ok(None);
        };
        let ip = IpAddr::V6(ip);
        Ok(port.map(|port| Address { family: Family::Ipv6, text: token.text.clone(), ip, zone, port, pos: token.pos }))
    }

    fn port(&mut self) -> Parsed<Option<u16>> {
        self.op(':')?;
        let (port, _) = self.number("port", 1, 65535)?;
        Ok(port.and_then(|p| u16::try_from(p).ok()))
    }

    fn no_address(&mut self, token: &Token) -> super::Failed {
        let expected = "an address: A.B.C.D:PORT, or ipv6 [ADDR]:PORT";
        if token.is_op('[') || token.kind == Kind::Ipv6 {
            let error = Diagnostic::error(token.pos, format!("expected {expected}, but got {}", token.shown()));
            self.syntax(error.help("write ipv6 before the bracket: `address ipv6 [ADDR]:PORT;`"));
            return super::Failed;
        }
        if token.is_string() {
            let error = Diagnostic::error(token.pos, format!("expected {expected}, but got {}", token.shown()));
            self.syntax(error.help("host names are not allowed here; write the number"));
            return super::Failed;
        }
        self.unexpected(token, expected)
    }
}
