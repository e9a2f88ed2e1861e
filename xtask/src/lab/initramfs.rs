// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes an initramfs: a cpio archive in the "newc" form of the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst. Archives may be concatenated; later files win.

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds an executable file, of less than 4 GiB.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, EXECUTABLE, content)
    }

    /// The archive with its end mark.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1).context("a file name is too long")?;
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), device of a special file (2), size of the name,
        // checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents, read as the kernel reads them.
    fn unpack(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let hex = std::str::from_utf8(&bytes[6 + 8 * index..][..8]).unwrap();
                usize::from_str_radix(hex, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            if name == "TRAILER!!!" {
                return files;
            }
            let content = (110 + name_size).next_multiple_of(4);
            files.push((name, bytes[content..content + size].to_vec()));
            bytes = &bytes[(content + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut archive = Archive::default();
        archive.directory("bin").unwrap();
        archive.file("bin/a", b"12345").unwrap();
        archive.file("bin/bcd", b"").unwrap();
        archive.file("x", b"1234").unwrap();
        let expected = [("bin", &b""[..]), ("bin/a", b"12345"), ("bin/bcd", b""), ("x", b"1234")];
        let expected = expected.map(|(name, content)| (name.to_owned(), content.to_vec()));
        assert_eq!(unpack(&archive.finish().unwrap()), expected);
    }
}
