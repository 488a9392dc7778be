//! Pins that somebody removes while a daemon counts: put back, because all that they held would end with it.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use traffic_ebpf::abi::maps;

use super::{attach::Attachments, maps::Maps, pins::Pins, sys};
use crate::meter::error::{MeterError, chain};

/// The pinned maps of a meter that is to outlive its process, held by descriptors.
pub(super) struct Kept {
    pins: Pins,
    maps: Vec<(PathBuf, OwnedFd)>,
    /// Whether what is gone could not be put back, so that it is said once.
    failed: bool,
}

impl Kept {
    /// Holds what is pinned now.
    ///
    /// # Errors
    ///
    /// [`MeterError::File`] when one of them cannot be opened.
    pub(super) fn hold(pins: &Pins) -> Result<Self, MeterError> {
        let hold = |name: &&str| {
            let path = pins.maps().join(name);
            match sys::open_pin(&path) {
                Ok(fd) => Ok((path, fd)),
                Err(cause) => Err(MeterError::File { doing: "open", path, cause }),
            }
        };
        let maps = maps::PINNED.iter().map(hold).collect::<Result<_, _>>()?;
        Ok(Self { pins: pins.clone(), maps, failed: false })
    }

    /// Puts back what is gone of the maps, whose life is `epoch`, and of what is attached. Says so.
    pub(super) fn mend(&mut self, epoch: u64, attachments: &Attachments) {
        let is_gone = |(path, _): &&(PathBuf, OwnedFd)| path.try_exists().is_ok_and(|there| !there);
        let gone = self.maps.iter().filter(is_gone).count() + attachments.unpinned();
        // In the meantime another run may have pinned its own there.
        let folder = self.pins.maps();
        let of_another = Maps::described(&folder).is_some_and(|there| there.epoch != epoch)
            || Maps::is_begun(&folder);
        if gone == 0 && !of_another {
            self.failed = false;
            return;
        }
        let put_back = if of_another {
            let reason = "are those of another run".to_owned();
            Err(MeterError::OtherPins { path: self.pins.root().into(), reason })
        } else {
            self.pin_again(attachments)
        };
        match put_back {
            Ok(()) => tracing::warn!(
                gone,
                folder = %self.pins.root().display(),
                "somebody removed pins of ours: they are put back, and nothing was missed"
            ),
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(
                    error = chain(&error),
                    "somebody removed pins of ours, and they cannot be put back: counting ends with this process"
                );
            }
            Err(_) => {}
        }
    }

    fn pin_again(&self, attachments: &Attachments) -> Result<(), MeterError> {
        self.pins.prepare()?;
        let failed = |path: &PathBuf, cause| MeterError::File {
            doing: "pin again",
            path: path.clone(),
            cause,
        };
        for (path, fd) in &self.maps {
            match sys::pin(fd.as_fd(), path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(path, error));
                }
                _ => {}
            }
        }
        attachments.pin_again().map_err(|(path, cause)| failed(&path, cause))
    }
}
