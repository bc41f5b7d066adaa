use std::os::fd::FromRawFd;

use super::*;
use crate::engine::EngineDescription;

fn spec() -> MachineSpec {
    MachineSpec {
        name: "microvm-1".into(),
        vcpu_count: 2,
        memory_mib: 512,
        kernel: "/bundle/vmlinux".into(),
        initramfs: "/bundle/initramfs".into(),
        cmdline: "console=ttyS0 quiet".into(),
        disk: "/vm/disk".into(),
        network: Some(NetworkSpec {
            netns: Some("slot-1".into()),
            tap: "tap0".into(),
            mac: [6, 0, 0xa9, 0xfe, 0x64, 2],
        }),
        run_dir: "/vm/run".into(),
        run_as: Some((1000, 1001)),
    }
}

fn platform(kvm: bool, read_only_base: bool) -> Platform {
    let description =
        EngineDescription { name: "qemu".into(), version: "7.2.22".into(), platform_fingerprint: "f".into() };
    Platform {
        binary: "/usr/bin/qemu".into(),
        kvm,
        tsc_khz: (!kvm).then_some(2_300_000),
        read_only_base,
        description,
    }
}

#[allow(unsafe_code)]
fn text(platform: &Platform, spec: &MachineSpec, mode: Mode) -> String {
    // SAFETY: numbers for the text only; nothing uses or closes them as files.
    let (control, disk) = unsafe {
        let file = |number| std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(number));
        (BorrowedFd::borrow_raw(1003), [file(1004), file(1005)])
    };
    let disk = std::mem::ManuallyDrop::new(disk.map(std::mem::ManuallyDrop::into_inner));
    let command = Command { platform, spec, memory: Path::new("/base,1/memory"), mode, control, disk: &disk };
    let arguments = command.arguments();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ").replace(" -", "\n-")
}

#[test]
fn command_lines() {
    insta::assert_snapshot!("boot", text(&platform(false, false), &spec(), Mode::Boot));
    insta::assert_snapshot!("restore", text(&platform(false, false), &spec(), Mode::Restore));
    let bare = MachineSpec { network: None, run_as: None, ..spec() };
    insta::assert_snapshot!(
        "restore_kvm_new_qemu_no_network",
        text(&platform(true, true), &bare, Mode::Restore)
    );
}

#[test]
fn words_that_would_mean_something_else_are_refused() {
    let network = |tap: &str, netns: &str, first: u8| {
        Some(NetworkSpec { netns: Some(netns.into()), tap: tap.into(), mac: [first, 0, 0, 0, 0, 1] })
    };
    let cases = [
        MachineSpec { name: "a,b".into(), ..spec() },
        MachineSpec { name: String::new(), ..spec() },
        MachineSpec { name: "x".repeat(65), ..spec() },
        MachineSpec { vcpu_count: 0, ..spec() },
        MachineSpec { memory_mib: 0, ..spec() },
        MachineSpec { network: network("tap0,x", "n", 6), ..spec() },
        MachineSpec { network: network("a-name-of-16-let", "n", 6), ..spec() },
        MachineSpec { network: network("tap0", "../x", 6), ..spec() },
        MachineSpec { network: network("tap0", "n", 7), ..spec() },
        MachineSpec { cmdline: "a\0b".into(), ..spec() },
        MachineSpec { run_as: Some((0, 5)), ..spec() },
    ];
    for case in cases {
        assert!(matches!(check(&case), Err(Error::Spec(_))), "{case:?}");
    }
    check(&spec()).unwrap();
}
