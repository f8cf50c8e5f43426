//! What the node tells the server about its exports, and what a negotiation ends with.
//!
//! Owns: [`ExportInfo`], [`Refusal`], [`Exports`], [`Negotiated`]. Export names are `RESOURCE` for volume 0 and
//! `RESOURCE/VOLUME`; the empty name means the only export where exactly one exists (the handshake resolves it).

use crate::units::Sectors;

/// One export as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// `RESOURCE` or `RESOURCE/VOLUME`.
    pub name: String,
    /// A line for people: role, disk state. May be empty.
    pub description: String,
    /// Size of the device.
    pub size: Sectors,
    /// Writes are refused.
    pub read_only: bool,
    /// Trim is offered.
    pub trim: bool,
    /// A flush on one connection covers the completed writes of all.
    pub multi_conn: bool,
}

/// Why an export cannot be opened; the text goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such export.
    #[error("{0}")]
    Unknown(String),
    /// It exists, but not for this client or not at this time, e.g. "r0 is Secondary on this node".
    #[error("{0}")]
    Policy(String),
    /// The daemon or the resource is being stopped.
    #[error("{0}")]
    Shutdown(String),
}

/// An export that was opened for one client. Dropping it unused gives the opening back.
#[derive(Debug)]
pub struct ExportHandle<H> {
    /// What the client is told.
    pub info: ExportInfo,
    /// How the connection reaches the resource; opaque to the negotiation.
    pub hand_over: H,
}

/// The table of exports, implemented by the node.
pub trait Exports {
    /// What leads a negotiated connection to its resource; its `Drop` releases the opening.
    type HandOver;

    /// All exports, in a stable order, whether they can be opened or not.
    fn list(&self) -> Vec<ExportInfo>;

    /// Opens the export `name` (never empty). Must not block.
    ///
    /// # Errors
    /// A [`Refusal`], whose text the client gets to see.
    fn open(&self, name: &str) -> Result<ExportHandle<Self::HandOver>, Refusal>;
}

/// What client and server agreed on; valid for the whole transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export, as the client was told.
    pub export: ExportInfo,
    /// Transmission flags that were sent (`NBD_FLAG_*`).
    pub flags: u16,
    /// Reads are answered with structured replies.
    pub structured: bool,
    /// The client selected `base:allocation`.
    pub base_allocation: bool,
}
