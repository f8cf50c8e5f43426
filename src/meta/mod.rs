//! DRBD's v08 on-disk metadata: layout, superblock, activity log, bitmap, text dump (pure).
