// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vfio-user servers that are silent, garble their replies or go away: one error in time, and no reply to another request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use interrupt_core::forward::DeviceInterrupt;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_intx::VfioUserIntx;
use vfio_intx::irq_set::INTX;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// No honest exchange takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first limit of a client whose server is to be too late, see [`too_late`].
const SHORT: Duration = Duration::from_millis(50);

const VERSION: u16 = 1;
const GET_INFO: u16 = 4;
const GET_IRQ_INFO: u16 = 7;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;

const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;
const HEADER: usize = 16;
const TIMED_OUT: i32 = 110;
const NOT_CONNECTED: i32 = 107;
const PROTOCOL: i32 = 71;

/// The requests that [`talk`] makes, in order. The first two are made by `connect`.
const REQUESTS: usize = 7;

/// What the server does instead of its honest reply.
enum Answer {
    Send(Vec<u8>),
    /// Sends, then nothing more.
    Stall(Vec<u8>),
    /// Sends one byte at a time.
    Drip(Vec<u8>, Duration),
    Close,
    CloseAfter(Vec<u8>),
}

struct Server {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

fn socket_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("hostile-{}-{n}.sock", std::process::id()))
}

impl Server {
    /// A server that answers the request with number `n` with `answer(n, command, reply)`.
    fn new(mut answer: impl FnMut(usize, u16, Vec<u8>) -> Answer + Send + 'static) -> Self {
        Self::raw(move |mut stream| {
            for n in 0.. {
                let Some((command, reply)) = request(&mut stream) else {
                    return;
                };
                // Whoever is gone need not be told.
                match answer(n, command, reply) {
                    Answer::Send(bytes) => drop(stream.write_all(&bytes)),
                    Answer::Stall(bytes) => {
                        drop(stream.write_all(&bytes));
                        drop(stream.read_to_end(&mut Vec::new()));
                        return;
                    }
                    Answer::Drip(bytes, pause) => {
                        for byte in bytes {
                            thread::sleep(pause);
                            if stream.write_all(&[byte]).is_err() {
                                return;
                            }
                        }
                    }
                    Answer::Close => return,
                    Answer::CloseAfter(bytes) => {
                        drop(stream.write_all(&bytes));
                        return;
                    }
                }
            }
        })
    }

    fn raw(serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let path = socket_path();
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
        Self {
            path,
            thread: Some(thread),
        }
    }

    fn connect(&self, limit: Duration) -> io::Result<VfioUserIntx> {
        VfioUserIntx::connect("hostile", &self.path, limit)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            assert!(thread::panicking() || served.is_ok());
        }
        drop(std::fs::remove_file(&self.path));
    }
}

/// One request, and the honest reply to it.
fn request(stream: &mut UnixStream) -> Option<(u16, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).ok()?;
    let command = u16::from_ne_bytes([header[2], header[3]]);
    let mut body = vec![0; word(&header, 1) as usize - HEADER];
    stream.read_exact(&mut body).ok()?;
    let reply = match command {
        VERSION => [&[0, 0, 1, 0][..], b"{\"capabilities\":{\"max_msg_fds\":8}}\0"].concat(),
        GET_INFO => [16u32, 1 << 1, 9, 5].map(u32::to_ne_bytes).concat(),
        GET_IRQ_INFO => [16u32, 7, word(&body, 2), 1].map(u32::to_ne_bytes).concat(),
        // The place, and as data the offset.
        REGION_READ => [&body[..], &body[..word(&body, 3) as usize]].concat(),
        REGION_WRITE => body[..16].to_vec(),
        _ => Vec::new(),
    };
    header[4..8].copy_from_slice(&((HEADER + reply.len()) as u32).to_ne_bytes());
    header[8..12].copy_from_slice(&REPLY.to_ne_bytes());
    Some((command, [&header, &reply[..]].concat()))
}

fn word(bytes: &[u8], n: usize) -> u32 {
    u32::from_ne_bytes(bytes[4 * n..4 * n + 4].try_into().unwrap())
}

fn set_word(bytes: &mut [u8], n: usize, value: u32) {
    bytes[4 * n..4 * n + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Makes each kind of request once. What becomes of each, from the first that `connect` did not succeed in.
fn talk(server: &Server, limit: Duration) -> Vec<io::Result<()>> {
    let intx = match server.connect(limit) {
        Ok(intx) => intx,
        Err(error) => return vec![Err(error)],
    };
    let trigger = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let plain = |outcome: interrupt_core::Result<()>| {
        outcome.map_err(|error| io::Error::from_raw_os_error(error.errno().unwrap_or_else(|| panic!("{error}"))))
    };
    vec![
        Ok(()),
        Ok(()),
        intx.irq_info().map(drop),
        plain(intx.set_trigger(Some(trigger.as_fd()))),
        plain(intx.unmask()),
        read(&intx, 0x24).map(drop),
        intx.region_write(0, 0x64, &[1, 0, 0, 0]),
    ]
}

fn read(intx: &VfioUserIntx, offset: u64) -> io::Result<u32> {
    let mut data = [0; 4];
    intx.region_read(0, offset, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

/// The request with number `n` failed, and all after it found no connection. `None` for "with any error".
#[track_caller]
fn assert_ended_at(n: usize, expected: Option<i32>, outcomes: &[io::Result<()>], what: &str) {
    if n < 2 {
        let error = outcomes[0].as_ref().unwrap_err();
        let text = error.to_string();
        assert_eq!(outcomes.len(), 1, "{what}");
        assert!(
            text.starts_with("VFIO_USER_") && text.lines().count() == 1,
            "{what}: {text}"
        );
        if let Some(errno) = expected {
            assert!(text.contains(&format!("(os error {errno})")), "{what}: {text}");
        }
        return;
    }
    assert_eq!(outcomes.len(), REQUESTS, "{what}: {:?}", outcomes[0]);
    assert!(outcomes[..n].iter().all(Result::is_ok), "{what}: {outcomes:?}");
    let error = outcomes[n].as_ref().unwrap_err();
    assert!(
        expected.is_none_or(|errno| error.raw_os_error() == Some(errno)),
        "{what}: {error}"
    );
    for later in &outcomes[n + 1..] {
        assert_eq!(
            later.as_ref().unwrap_err().raw_os_error(),
            Some(NOT_CONNECTED),
            "{what}"
        );
    }
}

/// Tries with longer and longer limits, until the machine is fast enough for all that comes before the part that is to
/// be too late.
fn too_late<T>(attempt: impl Fn(Duration) -> Option<T>) -> T {
    let mut limit = SHORT;
    loop {
        if let Some(done) = attempt(limit) {
            return done;
        }
        limit *= 2;
        assert!(limit < PATIENCE, "nothing is ever in time");
    }
}

/// [`talk`] with a server that is too late with the reply to request `at`.
fn talk_too_late(at: usize, server: impl Fn(Duration) -> Server) -> Vec<io::Result<()>> {
    too_late(|limit| {
        let outcomes = talk(&server(limit), limit);
        let failed = match outcomes.iter().position(Result::is_err)? {
            0 => usize::from(outcomes[0].as_ref().unwrap_err().to_string().contains("GET_INFO")),
            later => later,
        };
        (failed >= at).then_some(outcomes)
    })
}

/// Runs `client` in another thread, whose signals come faster than any limit.
fn while_signalled<T: Send + 'static>(client: impl FnOnce() -> T + Send + 'static) -> T {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN() + 3, nothing).unwrap();
    let client = thread::spawn(client);
    let since = Instant::now();
    while !client.is_finished() {
        client.kill(SIGRTMIN() + 3).unwrap();
        thread::sleep(Duration::from_millis(1));
        assert!(since.elapsed() < PATIENCE, "the signals keep the client waiting");
    }
    client.join().unwrap()
}

#[test]
fn an_honest_server_is_believed() {
    let server = Server::new(|_, _, reply| Answer::Send(reply));
    let outcomes = talk(&server, PATIENCE);
    assert_eq!(outcomes.len(), REQUESTS);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let server = Server::new(|_, _, reply| Answer::Send(reply));
    let intx = server.connect(PATIENCE).unwrap();
    let info = intx.irq_info().unwrap();
    assert_eq!((info.flags, info.count), (7, 1));
    assert_eq!(read(&intx, 0x24).unwrap(), 0x24);
    drop(intx);
    // One byte at a time is slow, and not wrong.
    let server = Server::new(|_, _, reply| Answer::Drip(reply, Duration::ZERO));
    let outcomes = talk(&server, PATIENCE);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn row_146_silent_at_each_request() {
    for at in 0..REQUESTS {
        for sent in [0, 1, HEADER - 1, HEADER, HEADER + 1] {
            let outcomes = talk_too_late(at, |_| {
                Server::new(move |n, _, reply| match n == at {
                    // SET_IRQS is answered by a header.
                    true => Answer::Stall(reply[..sent.min(reply.len() - 1)].to_vec()),
                    false => Answer::Send(reply),
                })
            });
            assert_ended_at(at, None, &outcomes, &format!("{sent} bytes of reply {at}"));
            let error = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
            assert!(
                error.kind() == ErrorKind::TimedOut || error.raw_os_error() == Some(TIMED_OUT),
                "{error}"
            );
        }
    }
}

/// The limit is for the whole reply: a byte now and then does not put it off.
#[test]
fn row_146_a_drip_at_each_request() {
    for at in 0..REQUESTS {
        let outcomes = talk_too_late(at, |limit| {
            Server::new(move |n, _, reply| match n == at {
                true => Answer::Drip(reply, limit / 3),
                false => Answer::Send(reply),
            })
        });
        assert_ended_at(at, None, &outcomes, &format!("reply {at}"));
    }
}

#[test]
fn row_146_silent_while_the_thread_is_signalled() {
    for at in [0, 5] {
        let outcomes = while_signalled(move || {
            talk_too_late(at, |_| {
                Server::new(move |n, _, reply| match n == at {
                    true => Answer::Stall(Vec::new()),
                    false => Answer::Send(reply),
                })
            })
        });
        assert_ended_at(at, None, &outcomes, &format!("reply {at}"));
    }
}

#[test]
fn row_146_nobody_accepts() {
    // The queue has room for one.
    let path = socket_path();
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = UnixStream::connect(&path).unwrap();
    let refused = |path: &Path| VfioUserIntx::connect("full", path, SHORT).unwrap_err().kind();
    assert_eq!(refused(&path), ErrorKind::TimedOut);
    let signalled = path.clone();
    assert_eq!(while_signalled(move || refused(&signalled)), ErrorKind::TimedOut);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn row_146_closes_at_each_message() {
    for at in 0..REQUESTS {
        let server = Server::new(move |n, _, reply| if n == at { Answer::Close } else { Answer::Send(reply) });
        assert_ended_at(
            at,
            Some(NOT_CONNECTED),
            &talk(&server, PATIENCE),
            &format!("before reply {at}"),
        );
        for sent in [1, HEADER - 1, HEADER, HEADER + 1, HEADER + 15] {
            let server = Server::new(move |n, _, reply| {
                if n == at {
                    Answer::CloseAfter(reply[..sent.min(reply.len() - 1)].to_vec())
                } else {
                    Answer::Send(reply)
                }
            });
            let what = format!("after {sent} bytes of reply {at}");
            assert_ended_at(at, Some(NOT_CONNECTED), &talk(&server, PATIENCE), &what);
        }
    }
}

#[test]
fn row_146_refuses_each_request() {
    for at in 0..REQUESTS {
        for (errno, expected) in [(1, 1), (22, 22), (0, 5), (u32::MAX, 5), (1 << 31, 5)] {
            let server = Server::new(move |n, _, mut reply| {
                if n == at {
                    reply.truncate(HEADER);
                    for (n, value) in [(1, HEADER as u32), (2, REPLY | ERROR), (3, errno)] {
                        set_word(&mut reply, n, value);
                    }
                }
                Answer::Send(reply)
            });
            let outcomes = talk(&server, PATIENCE);
            if at < 2 {
                assert_ended_at(at, Some(expected), &outcomes, "refused");
                continue;
            }
            for (n, outcome) in outcomes.iter().enumerate() {
                match outcome {
                    Ok(()) => assert_ne!(n, at),
                    Err(error) => assert_eq!((n, error.raw_os_error()), (at, Some(expected))),
                }
            }
        }
    }
}

/// Each word of each reply, with values that are wrong for most. Nobody panics, nobody waits, and what is wrong with the
/// frame of a reply, or with what it is a reply to, is found.
#[test]
fn row_146_each_field_of_each_reply_wrong() {
    let (mut found, mut borne) = (0, 0);
    for at in 0..REQUESTS {
        let words = match at {
            // The text after the version is not looked at.
            0 => 5,
            3 | 4 => 4,
            5 => 9,
            _ => 8,
        };
        for field in 0..words {
            let refusal = REPLY | ERROR;
            for value in [
                0,
                1,
                2,
                15,
                16,
                17,
                19,
                refusal,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_fff0,
                u32::MAX,
            ] {
                // A header and nothing more: that is how a server refuses.
                if (field, value, words) == (2, refusal, 4) {
                    continue;
                }
                let changed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let told = changed.clone();
                let server = Server::new(move |n, _, mut reply| {
                    if n == at {
                        told.store(word(&reply, field) != value, Ordering::Relaxed);
                        set_word(&mut reply, field, value);
                    }
                    Answer::Send(reply)
                });
                let what = format!("word {field} of reply {at} is {value:#x}");
                let outcomes = talk(&server, PATIENCE);
                let wrong = changed.load(Ordering::Relaxed)
                    && match field {
                        // ID and command; size; type of message and error.
                        0 | 1 => true,
                        2 => value & 0xf != REPLY || value & ERROR != 0,
                        // The errno of what is no error.
                        3 => false,
                        _ => match at {
                            0 => value as u16 != 0,
                            1 => field == 5 && value & 2 == 0,
                            2 => field == 6,
                            _ => field < 8,
                        },
                    };
                if wrong {
                    assert_ended_at(at, (at != 1 || field < 4).then_some(PROTOCOL), &outcomes, &what);
                    found += 1;
                } else {
                    assert!(outcomes.iter().all(Result::is_ok), "{what}: {outcomes:?}");
                    borne += 1;
                }
            }
        }
    }
    assert!(found > 200 && borne > 50, "{found} found, {borne} borne");
}

/// The ID alone is wrong: a reply to an earlier request, or to one that was never made.
#[test]
fn row_146_another_id_in_each_reply() {
    for at in 0..REQUESTS {
        for other in [1, 2, 0x8000, 0xffff] {
            let server = Server::new(move |n, _, mut reply| {
                if n == at {
                    let first = word(&reply, 0);
                    set_word(&mut reply, 0, first ^ other);
                }
                Answer::Send(reply)
            });
            assert_ended_at(
                at,
                Some(PROTOCOL),
                &talk(&server, PATIENCE),
                &format!("reply {at}, {other:#x}"),
            );
        }
    }
}

/// What comes before any request was read, and without an end: zeroes, ones, and what a generator makes.
#[test]
fn row_146_garbage() {
    for seed in 0..64u64 {
        let server = Server::raw(move |mut stream| {
            let mut state = seed;
            let mut chunk = [0; 4096];
            loop {
                for byte in &mut chunk {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    *byte = match seed {
                        0 => 0,
                        1 => 0xff,
                        _ => (state >> 56) as u8,
                    };
                }
                // The client has gone.
                if stream.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        assert_ended_at(0, Some(PROTOCOL), &talk(&server, PATIENCE), &format!("seed {seed}"));
    }
}

/// As many bytes of capabilities as fit are read, and no more.
#[test]
fn capabilities_without_end_are_refused() {
    for (size, fits) in [
        (4, true),
        (4 + (1 << 16), true),
        (5 + (1 << 16), false),
        (u32::MAX - 16, false),
    ] {
        let server = Server::new(move |n, _, mut reply| {
            if n == 0 {
                set_word(&mut reply, 1, HEADER as u32 + size);
                reply.resize(HEADER + (size as usize).min(1 << 17), b' ');
            }
            Answer::Send(reply)
        });
        let outcomes = talk(&server, PATIENCE);
        assert_eq!(outcomes[0].is_ok(), fits, "{size}: {:?}", outcomes[0]);
    }
}

/// The reply to the first read comes when the client has given it up. The next read is not answered by it.
#[test]
fn a_late_reply_answers_nothing() {
    let (_server, intx) = too_late(|limit| {
        let server = Server::new(move |_, command, reply| match command {
            REGION_READ => Answer::Drip(reply, limit / 4),
            _ => Answer::Send(reply),
        });
        let intx = server.connect(limit).ok()?;
        Some((server, intx))
    });
    assert_eq!(read(&intx, 0x24).unwrap_err().raw_os_error(), Some(TIMED_OUT));
    for _ in 0..3 {
        assert_eq!(read(&intx, 0x60).unwrap_err().raw_os_error(), Some(NOT_CONNECTED));
        thread::sleep(SHORT);
    }
    drop(intx);
}

/// A server that is slow, but in time, has many clients' threads queue. None of them is too late for that.
#[test]
fn the_limit_begins_when_other_requests_are_done() {
    const THREADS: u64 = 6;
    let slow_enough = |limit: Duration| {
        let server = Server::new(move |_, command, reply| {
            if command == REGION_READ {
                thread::sleep(limit / 3);
            }
            Answer::Send(reply)
        });
        let intx = server.connect(limit).ok()?;
        let read_all = |intx: &VfioUserIntx| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || read(intx, n))).collect();
                let read = threads.into_iter().map(|thread| thread.join().unwrap());
                read.collect::<io::Result<Vec<_>>>().ok()
            })
        };
        let read = read_all(&intx);
        drop(intx);
        read
    };
    // Where the limit begins earlier, no limit is long enough for the last of them.
    let read = too_late(slow_enough);
    assert_eq!(read, (0..THREADS as u32).collect::<Vec<_>>());
}

/// Polled for no event, the descriptor says when the server goes, and when the connection was ended here.
#[test]
fn the_end_of_a_connection_can_be_watched() {
    let hung_up = |intx: &VfioUserIntx, limit: Option<&Timespec>| {
        let mut fds = [PollFd::new(intx, PollFlags::empty())];
        poll(&mut fds, limit).unwrap();
        fds[0].revents().contains(PollFlags::HUP)
    };
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let goes = Server::new(|_, command, reply| match command {
        REGION_WRITE => Answer::CloseAfter(reply),
        _ => Answer::Send(reply),
    });
    let intx = goes.connect(PATIENCE).unwrap();
    assert!(!hung_up(&intx, Some(&NOW)));
    intx.region_write(0, 0, &[0]).unwrap();
    assert!(hung_up(&intx, None));

    let stops = Server::new(|n, _, reply| {
        if n < 2 {
            Answer::Send(reply)
        } else {
            Answer::Stall(Vec::new())
        }
    });
    let intx = stops.connect(SHORT).unwrap();
    assert!(!hung_up(&intx, Some(&NOW)));
    intx.irq_info().unwrap_err();
    assert!(hung_up(&intx, Some(&NOW)));
    drop(intx);
}

/// An answer about another interrupt than the one that was asked for is no answer.
#[test]
fn another_index_is_another_interrupt() {
    let server = Server::new(|_, command, mut reply| {
        if command == GET_IRQ_INFO {
            set_word(&mut reply, HEADER / 4 + 2, INTX + 1);
        }
        Answer::Send(reply)
    });
    let intx = server.connect(PATIENCE).unwrap();
    assert_eq!(intx.info().unwrap_err().errno(), Some(PROTOCOL));
}
