// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The path of a vfio-user server's socket.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

/// The longest path that the address of a Unix socket has room for, with the zero byte behind it (unix(7)).
const MOST: usize = 107;

/// The path of a Unix socket. Its length is limited to what a socket address holds, so the type is `Copy`, as a PCI
/// address is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SocketPath {
    bytes: [u8; MOST],
    length: usize,
}

impl SocketPath {
    /// The path.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.bytes[..self.length]))
    }
}

impl FromStr for SocketPath {
    type Err = String;

    /// # Errors
    /// One line that names the fault of the path.
    fn from_str(text: &str) -> Result<Self, String> {
        let length = text.len();
        if length == 0 {
            return Err(
                "vfio-user: and no path; use the path of the server's socket, as vfio-user:/run/edu.sock".to_owned(),
            );
        }
        if length > MOST {
            return Err(format!(
                "a Unix socket's path has at most {MOST} bytes, and this has {length}; use a shorter path, as /run/edu.sock"
            ));
        }
        let mut bytes = [0; MOST];
        bytes[..length].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length })
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl fmt::Debug for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)
    }
}
