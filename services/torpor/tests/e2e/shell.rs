//! Shells in a microVM's container, through `torpor shell`.

use std::process::{Output, Stdio};
use std::time::Duration;

use api::microvm::v1::*;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::world::{IMAGE, Running, World};

const WAIT: Duration = Duration::from_secs(60);

/// The exit code for a state that forbids it.
const CONFLICT: i32 = 4;

fn torpor(fleet: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torpor"));
    command.args(arguments).env("TORPOR_DATA_DIR", &fleet.data_dir).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A microVM that lets shells in, started as a user does.
async fn run<'a>(fleet: &'a World, options: &[&str]) -> Running<'a> {
    fleet.app_image().await;
    let arguments = [&["run", IMAGE, "--shell", "-o", "json"], options].concat();
    let output = torpor(fleet, &arguments).output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let microvm: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = microvm["microvmId"].as_str().unwrap_or_else(|| panic!("{microvm}"));
    fleet.attach(fleet.get(id).await.unwrap()).await
}

/// Types a script into a shell, to its end.
async fn shell(fleet: &World, id: &str, script: &str) -> Output {
    let mut child = torpor(fleet, &["shell", id]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).await.unwrap();
    let done = tokio::time::timeout(WAIT, child.wait_with_output()).await;
    done.expect("the shell ends with its input").unwrap()
}

/// A shell that stays open.
struct Open {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    shown: String,
}

impl Open {
    fn new(fleet: &World, id: &str) -> Self {
        let mut child = torpor(fleet, &["shell", id]).stderr(Stdio::inherit()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, stdin, stdout, shown: String::new() }
    }

    /// Types a line and waits until the terminal has shown a text; what it has shown up to then.
    async fn ask(&mut self, line: &str, until: &str) -> String {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let reading = async {
            loop {
                if let Some(at) = self.shown.find(until) {
                    let rest = self.shown.split_off(at + until.len());
                    return std::mem::replace(&mut self.shown, rest);
                }
                let mut bytes = [0; 4096];
                let count = self.stdout.read(&mut bytes).await.unwrap();
                assert!(count > 0, "the shell ended before it showed {until:?}: {}", self.shown);
                self.shown.push_str(&text(&bytes[..count]));
            }
        };
        tokio::time::timeout(WAIT, reading).await.unwrap_or_else(|_| panic!("waited for {until:?}"))
    }
}

#[tokio::test]
async fn a_shell_is_roots_in_the_apps_container() {
    let fleet = World::open();
    let microvm = run(&fleet, &[]).await;
    let script = "\
        echo user=$(id -un) directory=$PWD image=$AWS_LAMBDA_MICROVM_IMAGE_NAME term=$TERM\n\
        echo first=$(tr '\\0' ' ' </proc/1/cmdline)\n\
        echo capabilities=$(grep CapEff /proc/self/status)\n\
        echo terminal=$(tty) size=$(stty size)\n\
        exec 3<>/dev/tcp/127.0.0.1/8080 && echo app=$((1+1))\n";
    let output = shell(&fleet, &microvm.id, script).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for expected in [
        &format!("user=root directory=/srv image={IMAGE} term=xterm"),
        "first=python3 -u /srv/app.py",
        "capabilities=CapEff: 00000000a80425fb",
        "terminal=/dev/pts/",
        "size=0 0",
        "app=2",
    ] {
        assert!(shown.contains(expected), "no {expected:?} in {shown}");
    }
    assert_eq!(microvm.count().await, 1, "the app goes on");
    microvm.terminate().await;
}

#[tokio::test]
async fn shells_are_separate_and_end_with_their_connection() {
    let fleet = World::open();
    let microvm = run(&fleet, &[]).await;
    let (mut one, mut two) = (Open::new(&fleet, &microvm.id), Open::new(&fleet, &microvm.id));
    let shown = one.ask("sleep 98765 & echo pid=$! begun=$((1+1))", "begun=2").await;
    let pid = shown.rsplit("pid=").next().unwrap().split(' ').next().unwrap();
    assert!(pid.parse::<u32>().is_ok(), "{shown}");
    // A process that has ended, and that the app does not reap, has no arguments.
    let runs = format!("tr '\\0' ' ' </proc/{pid}/cmdline | grep -q 98765");
    two.ask(&format!("{runs} && echo seen=$((1+1))"), "seen=2").await;
    drop(one);
    two.ask(&format!("while {runs}; do sleep 0.1; done; echo gone=$((1+1))"), "gone=2").await;
    microvm.terminate().await;
}

#[tokio::test]
async fn who_is_not_let_in_learns_what_to_do() {
    let fleet = World::open();
    let microvm = fleet.run(fleet.app_image().await).await;
    let output = shell(&fleet, &microvm.id, "exit\n").await;
    assert_eq!(output.status.code(), Some(CONFLICT));
    let said = text(&output.stderr);
    assert!(said.contains("Shell access requires SHELL_INGRESS") && said.contains("--shell"), "{said}");
    microvm.terminate().await;
}

#[tokio::test]
async fn a_shell_survives_suspends_and_its_keys_wake_the_microvm() {
    let fleet = World::open();
    let microvm = run(&fleet, &["--idle", "600s"]).await;
    let mut open = Open::new(&fleet, &microvm.id);
    open.ask("kept=yes; echo begun=$((1+1))", "begun=2").await;
    for round in 2..5 {
        assert_eq!(microvm.suspend().await.unwrap().state(), MicrovmState::Suspended);
        assert!(microvm.engine_pid().is_none());
        // The same shell, and nothing said twice.
        let shown =
            open.ask(&format!("echo kept=$kept round=$(({round}+0))"), &format!("round={round}\r\n")).await;
        let answer = format!("kept=yes round={round}");
        assert_eq!(shown.matches(&answer).count(), 1, "{shown}");
    }
    microvm.terminate().await;
}
