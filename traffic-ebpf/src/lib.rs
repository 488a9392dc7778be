//! What the kernel side and user space share.
#![no_std]
