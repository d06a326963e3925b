//! The program and image of sandboxes: it does nothing for ever, so that the pod's namespaces have an owner.
//!
//! A program of a few dozen instructions, assembled here, so that no image has to be pulled before the first pod. It
//! ignores the end of its children, which makes the kernel reap every orphan of a pod that shares its processes, and
//! then waits for SIGTERM or SIGINT. As process 1 it would never see them at their defaults, so it blocks them and
//! waits: a blocked signal is kept even for process 1.

use bollard::query_parameters::CreateImageOptions;
use bytes::Bytes;
use futures::TryStreamExt;

use super::Docker;
use super::error::{DockerError, engine, found, refused};

/// The image's repository and tag. A changed program needs another tag.
const REPOSITORY: &str = "coracle.dev/pause";
const TAG: &str = "1";
/// The program in the image.
pub(super) const PROGRAM: &str = "/pause";

/// The image's name.
pub(super) fn image() -> String {
    format!("{REPOSITORY}:{TAG}")
}

impl Docker {
    pub(super) async fn ensure_pause_image(&self) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        if found(client.inspect_image(&image()).await).map_err(engine("inspect an image"))?.is_some() {
            return Ok(());
        }
        let info = client.version().await.map_err(engine("tell its version"))?;
        let arch = info.arch.unwrap_or_default();
        let unsupported = |detail: String| DockerError::Unsupported { detail };
        let Some(program) = program(&arch) else {
            return Err(unsupported(format!("there is no sandbox program for machines of type {arch:?}")));
        };
        let archive =
            archive(&program).map_err(|error| unsupported(format!("cannot make the sandbox image: {error}")))?;
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(REPOSITORY.to_owned()),
            tag: Some(TAG.to_owned()),
            message: Some("the sandbox of Coracle's pods".to_owned()),
            changes: vec![format!("ENTRYPOINT [\"{PROGRAM}\"]")],
            ..Default::default()
        };
        let failed = |detail| unsupported(format!("Docker cannot import the sandbox image: {detail}"));
        let importing = client.create_image(Some(options), Some(bollard::body_full(archive)), None);
        importing.try_for_each(async |_| Ok(())).await.map_err(refused(failed))
    }
}

fn archive(program: &[u8]) -> std::io::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, PROGRAM.trim_start_matches('/'), program)?;
    Ok(archive.into_inner()?.into())
}

/// The program for an architecture in Go's words; `None` where nobody has written it.
fn program(arch: &str) -> Option<Vec<u8>> {
    let (machine, code) = match arch {
        "amd64" => (62, x86_64()),
        "arm64" => (183, aarch64()),
        _ => return None,
    };
    Some(elf(machine, &code))
}

const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u8 = 17;
/// Bytes of the kernel's set of signals.
const SET_BYTES: u8 = 8;

/// What both programs read: the kernel's `struct sigaction` that ignores a signal (handler SIG_IGN, no flags, no
/// restorer, empty mask), then the set of the signals waited for.
const ACTION_BYTES: usize = 32;
fn data() -> Vec<u8> {
    let mut data = vec![0; ACTION_BYTES];
    data[0] = 1;
    data.extend((1_u64 << (SIGINT - 1) | 1 << (SIGTERM - 1)).to_le_bytes());
    data
}

fn x86_64() -> Vec<u8> {
    // `lea` is relative to the next instruction; the code before the data is this long.
    const CODE_BYTES: i32 = 91;
    let action = |after: i32| (CODE_BYTES - after).to_le_bytes();
    let set = |after: i32| (CODE_BYTES - after + ACTION_BYTES as i32).to_le_bytes();
    let mut code = [
        &[0xb8, 13, 0, 0, 0][..],  //  0 mov eax, 13 (rt_sigaction)
        &[0xbf, SIGCHLD, 0, 0, 0], //  5 mov edi, SIGCHLD
        &[0x48, 0x8d, 0x35],
        &action(17),                       // 10 lea rsi, [rip + action]
        &[0x31, 0xd2],                     // 17 xor edx, edx
        &[0x41, 0xba, SET_BYTES, 0, 0, 0], // 19 mov r10d, 8
        &[0x0f, 0x05],                     // 25 syscall
        &[0xb8, 14, 0, 0, 0],              // 27 mov eax, 14 (rt_sigprocmask)
        &[0x31, 0xff],                     // 32 xor edi, edi (SIG_BLOCK)
        &[0x48, 0x8d, 0x35],
        &set(41),                          // 34 lea rsi, [rip + set]
        &[0x31, 0xd2],                     // 41 xor edx, edx
        &[0x41, 0xba, SET_BYTES, 0, 0, 0], // 43 mov r10d, 8
        &[0x0f, 0x05],                     // 49 syscall
        &[0xb8, 128, 0, 0, 0],             // 51 mov eax, 128 (rt_sigtimedwait)
        &[0x48, 0x8d, 0x3d],
        &set(63),                          // 56 lea rdi, [rip + set]
        &[0x31, 0xf6],                     // 63 xor esi, esi (no siginfo)
        &[0x31, 0xd2],                     // 65 xor edx, edx (no time limit)
        &[0x41, 0xba, SET_BYTES, 0, 0, 0], // 67 mov r10d, 8
        &[0x0f, 0x05],                     // 73 syscall
        &[0x85, 0xc0],                     // 75 test eax, eax
        &[0x78, (51_i8 - 79) as u8],       // 77 js 51 (interrupted: wait again)
        &[0xb8, 231, 0, 0, 0],             // 79 mov eax, 231 (exit_group)
        &[0x31, 0xff],                     // 84 xor edi, edi
        &[0x0f, 0x05],                     // 86 syscall
        &[0x0f, 0x0b, 0x90],               // 88 ud2, nop
    ]
    .concat();
    debug_assert_eq!(code.len(), CODE_BYTES as usize);
    code.extend(data());
    code
}

fn aarch64() -> Vec<u8> {
    // mov xR, #value
    let mov = |register: u32, value: u32| 0xd280_0000 | value << 5 | register;
    // adr xR, the place that is `bytes` after the instruction (a multiple of 4)
    let adr = |register: u32, bytes: u32| 0x1000_0000 | (bytes / 4) << 5 | register;
    // tbnz w0, #31, `words` instructions on: if the result is negative
    let jump_if_negative = |words: i32| 0x37f8_0000 | (words as u32 & 0x3fff) << 5;
    const SUPERVISOR_CALL: u32 = 0xd400_0001;
    const CODE_WORDS: u32 = 23;
    let action = |at: u32| (CODE_WORDS - at) * 4;
    let set = |at: u32| action(at) + ACTION_BYTES as u32;
    let code = [
        mov(8, 134), //  0 rt_sigaction
        mov(0, SIGCHLD.into()),
        adr(1, action(2)),
        mov(2, 0),
        mov(3, SET_BYTES.into()),
        SUPERVISOR_CALL,
        mov(8, 135), //  6 rt_sigprocmask
        mov(0, 0),   //    SIG_BLOCK
        adr(1, set(8)),
        mov(2, 0),
        mov(3, SET_BYTES.into()),
        SUPERVISOR_CALL,
        mov(8, 137), // 12 rt_sigtimedwait
        adr(0, set(13)),
        mov(1, 0), //      no siginfo
        mov(2, 0), //      no time limit
        mov(3, SET_BYTES.into()),
        SUPERVISOR_CALL,
        jump_if_negative(12 - 18), // interrupted: wait again
        mov(8, 94),                // 19 exit_group
        mov(0, 0),
        SUPERVISOR_CALL,
        0x0000_0000, // udf: not reached
    ];
    debug_assert_eq!(code.len(), CODE_WORDS as usize);
    let mut bytes: Vec<u8> = code.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    bytes.extend(data());
    bytes
}

/// A static executable: one segment with headers, code and data, read and executed at a fixed address.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const PAGE_BYTES: u64 = 0x1_0000;
    const HEADER_BYTES: u16 = 64;
    const SEGMENT_BYTES: u16 = 56;
    let start = u64::from(HEADER_BYTES + SEGMENT_BYTES);
    let length = start + code.len() as u64;
    let mut file = Vec::new();
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little endian
    file.extend(2_u16.to_le_bytes()); // an executable
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend((ADDRESS + start).to_le_bytes()); // where it begins
    file.extend(u64::from(HEADER_BYTES).to_le_bytes()); // where the segments' table is
    file.extend(0_u64.to_le_bytes()); // no sections
    file.extend(0_u32.to_le_bytes());
    for field in [HEADER_BYTES, SEGMENT_BYTES, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // to be loaded
    file.extend(5_u32.to_le_bytes()); // readable, executable
    for field in [0, ADDRESS, ADDRESS, length, length, PAGE_BYTES] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_whole() {
        for arch in ["amd64", "arm64"] {
            let program = program(arch).unwrap();
            assert!(program.ends_with(&data()), "{arch}");
            assert!(program.len() < 512, "{arch}: {} bytes", program.len());
        }
        assert!(program("riscv64").is_none());
    }
}
