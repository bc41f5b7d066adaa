//! The tests' app: busybox on a small ext4 disk, a counter in memory, a hook
//! server whose answers the tests choose.

use std::path::{Path, PathBuf};
use std::process::Command;

pub const APP_PORT: u32 = 8080;
pub const HOOK_PORT: u32 = 9000;
/// Sends back what it gets.
pub const ECHO_PORT: u32 = 9001;
/// The pages, on guest loopback only.
pub const LOOPBACK_PORT: u32 = 9002;
/// Counts, a line at a time, as long as somebody listens.
pub const COUNT_PORT: u32 = 9003;
/// Answers a line with the counter, a second later.
pub const SLOW_PORT: u32 = 9004;

const APPLETS: &[&str] = &[
    "sh", "httpd", "nc", "cat", "echo", "hostname", "mkfifo", "sleep", "poweroff", "head", "dd", "sync",
    "md5sum", "date",
];

const APP: &str = r#"#!/bin/sh
echo 0 > /dev/shm/counter
echo "app: starting with GREETING=$GREETING image=$AWS_LAMBDA_MICROVM_IMAGE_NAME"
[ -z "$EXIT_AT_ONCE" ] || exit "$EXIT_AT_ONCE"
[ -z "$NEVER_LISTEN" ] || exec sleep 100000
nc -ll -p 9000 -e /bin/hook &
nc -ll -p 9001 -e cat &
httpd -p 127.0.0.1:9002 -h /www
nc -ll -p 9003 -e /bin/count &
nc -ll -p 9004 -e /bin/slow &
mkfifo /dev/shm/end
httpd -f -p 8080 -h /www &
exec 3<>/dev/shm/end
code=
while [ -z "$code" ]; do read -r code <&3; done
exit "$code"
"#;

/// Answers every hook with the status in /dev/shm/<hook>, by default 200, after the seconds in /dev/shm/<hook>-takes.
const HOOK: &str = r#"#!/bin/sh
read -r method path version
name=${path##*/}
length=0
while read -r line; do
    line=${line%?}
    [ -n "$line" ] || break
    case $line in [Cc]ontent-[Ll]ength:*) length=${line#*: } ;; esac
done
body=$(head -c "$length")
echo "hook: $name $body" >> /dev/shm/hooks
status=200
[ ! -f "/dev/shm/$name" ] || status=$(cat "/dev/shm/$name")
eval "fixed=\$HOOK_$name"
[ -z "$fixed" ] || status=$fixed
[ ! -f "/dev/shm/$name-takes" ] || sleep "$(cat "/dev/shm/$name-takes")"
printf 'HTTP/1.1 %s x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$status"
"#;

const COUNT: &str = "#!/bin/sh\nn=0\nwhile echo $n; do n=$((n + 1)); sleep 0.02; done\n";

const SLOW: &str = "#!/bin/sh\nread -r line\nsleep 1\nn=$(cat /dev/shm/counter)\nn=$((n + 1))\necho $n > /dev/shm/counter\necho $n\n";

const PAGES: &[(&str, &str)] = &[
    ("count", "n=$(cat /dev/shm/counter); n=$((n + 1)); echo $n > /dev/shm/counter; echo $n"),
    ("uuid", "cat /proc/sys/kernel/random/uuid"),
    ("host", "hostname; cat /etc/machine-id"),
    ("hooks", "cat /dev/shm/hooks"),
    ("set", "echo \"${QUERY_STRING#*=}\" > \"/dev/shm/${QUERY_STRING%%=*}\"; echo ok"),
    // Six seconds of nothing but work.
    (
        "work",
        "read -r up rest < /proc/uptime; end=$((${up%.*} + 6))
(while read -r up rest < /proc/uptime; [ ${up%.*} -lt $end ]; do :; done) > /dev/null 2>&1 < /dev/null &
echo ok",
    ),
    ("sockets", "cat /proc/net/tcp /proc/net/tcp6"),
    ("counting", "exec /bin/count"),
    ("exit", "echo 3 > /dev/shm/end"),
    ("off", "poweroff -f"),
    ("panic", "echo c > /proc/sysrq-trigger"),
    ("write", "dd if=/dev/urandom of=/data bs=1024 count=2048 2>/dev/null; sync; md5sum < /data"),
    ("read", "md5sum < /data"),
    (
        "writing",
        "(dd if=/dev/urandom of=/more bs=1024 count=2048; sync) > /dev/null 2>&1 < /dev/null &\necho ok",
    ),
    ("date", "date +%s"),
];

/// Makes the disk as `path`.
pub fn make(path: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path();
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "www/cgi-bin"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is needed");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    script(&root.join("bin/app"), APP);
    script(&root.join("bin/hook"), HOOK);
    script(&root.join("bin/count"), COUNT);
    script(&root.join("bin/slow"), SLOW);
    for (name, body) in PAGES {
        let page = format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n{body}\n");
        script(&root.join("www/cgi-bin").join(name), &page);
    }
    std::fs::write(root.join("etc/machine-id"), "").unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    let status = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(root)
        .arg(path)
        .arg("64M")
        .status()
        .unwrap();
    assert!(status.success(), "mke2fs");
}

fn script(path: &PathBuf, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
