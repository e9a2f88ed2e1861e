// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk: a raw file or a block device.
//!
//! A completed write is in the host's page cache and outlives this process. A flushed write is on stable storage. The
//! disk keeps its initial size: if the file is truncated, the guest's reads and writes beyond its end fail.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use vm_memory::{GuestMemory as _, GuestMemoryMmap, Permissions};

use crate::error::boot_error::BootError;
use crate::linux::virtio::chain::Buffers;

/// The unit of virtio's block device, in bytes.
pub const SECTOR: u64 = 512;

/// The most buffers that the kernel accepts in one call.
const BUFFERS_MAX: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    size: u64,
    is_file: bool,
    /// Reused by each request.
    buffers: Vec<libc::iovec>,
}

// SAFETY: `transfer` rebuilds the pointers in `buffers` at each call and never uses those of an earlier call.
unsafe impl Send for Disk {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// From the disk into the guest's buffers.
    In,
    /// From the guest's buffers to the disk.
    Out,
}

impl Disk {
    /// Opens the disk.
    ///
    /// # Errors
    /// [`BootError::File`], [`BootError::ReadOnlyDisk`], [`BootError::NotADisk`], [`BootError::PartialSector`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BootError> {
        let unusable = |source| BootError::File {
            option: "--disk",
            path: path.to_owned(),
            source,
        };
        let not_a_disk = |what| BootError::NotADisk {
            path: path.to_owned(),
            what,
        };
        // Check before the open, which would wait for the other end of a pipe.
        let kind = std::fs::metadata(path).map_err(unusable)?.file_type();
        if kind.is_dir() {
            return Err(not_a_disk("a directory"));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(not_a_disk("neither a file nor a block device"));
        }
        let mut file = match OpenOptions::new().read(true).write(!read_only).open(path) {
            Ok(file) => file,
            Err(source) if !read_only && File::open(path).is_ok() => {
                return Err(BootError::ReadOnlyDisk {
                    path: path.to_owned(),
                    source,
                });
            }
            Err(source) => return Err(unusable(source)),
        };
        // The metadata of a block device have length 0. Seek to its end instead.
        let size = file.seek(SeekFrom::End(0)).map_err(unusable)?;
        if size == 0 {
            return Err(not_a_disk("empty"));
        }
        if size % SECTOR != 0 {
            return Err(BootError::PartialSector {
                path: path.to_owned(),
                size,
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            read_only,
            size,
            is_file: kind.is_file(),
            buffers: Vec::new(),
        })
    }

    /// The disk's size in sectors.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    /// Whether the disk is read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The path of the disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills the buffers from byte `at` on.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` when the disk ends, or has become shorter.
    pub fn read(&mut self, memory: &GuestMemoryMmap, buffers: &Buffers, at: u64) -> io::Result<()> {
        self.transfer(Direction::In, memory, buffers, at)
    }

    /// Writes the buffers to byte `at` and on.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` when the disk ends, or has become shorter; EBADF for one that is read-only.
    pub fn write(&mut self, memory: &GuestMemoryMmap, buffers: &Buffers, at: u64) -> io::Result<()> {
        // A write beyond the end of a truncated file would extend the file, with a hole in place of the guest's data.
        if self.is_file && self.file.metadata()?.len() < self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.transfer(Direction::Out, memory, buffers, at)
    }

    /// Flushes: returns when all completed writes are on stable storage.
    ///
    /// # Errors
    /// The system's.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn transfer(
        &mut self,
        direction: Direction,
        memory: &GuestMemoryMmap,
        buffers: &Buffers,
        at: u64,
    ) -> io::Result<()> {
        let end = at.checked_add(buffers.length());
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let access = match direction {
            Direction::In => Permissions::Write,
            Direction::Out => Permissions::Read,
        };
        self.buffers.clear();
        for (address, length) in buffers.iter() {
            // A buffer may span several regions of the guest's memory.
            let slices = memory
                .get_slices(address, length as usize, access)
                .map_err(io::Error::other)?;
            for slice in slices {
                let slice = slice.map_err(io::Error::other)?;
                self.buffers.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        let (mut first, mut at) = (0, at);
        while first < self.buffers.len() {
            let left = &self.buffers[first..];
            let count = left.len().min(BUFFERS_MAX) as libc::c_int;
            let fd = self.file.as_raw_fd();
            // A size is at most an `i64`.
            let offset = at as libc::off_t;
            let done = match direction {
                // SAFETY: the buffers lie in the mappings of `memory`, which outlives the call. The guest's processors
                // may write the buffers meanwhile, and no reference in this process points to them.
                Direction::In => unsafe { libc::preadv(fd, left.as_ptr(), count, offset) },
                // SAFETY: as above.
                Direction::Out => unsafe { libc::pwritev(fd, left.as_ptr(), count, offset) },
            };
            match usize::try_from(done) {
                Ok(0) if left[0].iov_len > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    at += done as u64;
                    first += advance(&mut self.buffers[first..], done);
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// Removes `done` bytes from the front of the buffers, and returns the number of buffers that are complete.
fn advance(buffers: &mut [libc::iovec], mut done: usize) -> usize {
    for (number, buffer) in buffers.iter_mut().enumerate() {
        if done < buffer.iov_len {
            buffer.iov_base = buffer.iov_base.cast::<u8>().wrapping_add(done).cast();
            buffer.iov_len -= done;
            return number;
        }
        done -= buffer.iov_len;
    }
    buffers.len()
}
