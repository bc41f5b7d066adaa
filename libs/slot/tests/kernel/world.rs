//! What the tests stand on: settings of their own, stand-ins for guests, and a
//! net that removes whatever a test left.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use slot::{PoolSettings, Slot, Subnet};

/// Settings of one test; sweeps before and after.
pub struct World(pub PoolSettings);

impl World {
    pub fn new(letter: char, third: u8) -> Self {
        let world = Self(PoolSettings {
            prefix: format!("tpt-{letter}"),
            outer_subnet: Subnet::new([10, 203, third, 0].into(), 24),
            ready: 2,
            total: 8,
            take_timeout_ms: 5000,
            ..PoolSettings::default()
        });
        world.sweep();
        world
    }

    /// Names of namespaces and devices with this test's prefix.
    pub fn names(&self) -> Vec<String> {
        let list = |directory: &str| {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
        };
        let mut names = list("/run/netns");
        names.extend(list("/sys/class/net"));
        names.retain(|name| name.starts_with(&format!("{}-", self.0.prefix)));
        names
    }

    pub fn has_table(&self) -> bool {
        let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains(&self.table())
    }

    /// Outer address of a slot's namespace.
    pub fn outer(&self, slot: &Slot) -> String {
        let [a, b, c, _] = self.0.outer_subnet.address.octets();
        format!("{a}.{b}.{c}.{}", slot.index() * 4 + 2)
    }

    fn table(&self) -> String {
        format!("torpor_{}", self.0.prefix.replace('-', "_"))
    }

    fn sweep(&self) {
        for name in self.names() {
            let kind = if Path::new("/run/netns").join(&name).exists() { "netns" } else { "link" };
            let _ = Command::new("ip").args([kind, "del", &name]).output();
        }
        for table in [self.table(), format!("{}_closed", self.table())] {
            let _ = Command::new("nft").args(["delete", "table", "inet", &table]).output();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.sweep();
    }
}

/// A stand-in for the guest: a namespace of its own behind a veth pair that
/// takes the tap's place and name, with the guest's address.
pub struct Guest {
    pub name: String,
}

impl Guest {
    pub fn attach(slot: &Slot) -> Self {
        let name = format!("{}-guest", slot.name());
        let slot = slot.name();
        batch(
            &[],
            &format!("netns add {name}\nlink add tap1 netns {slot} type veth peer name eth0 netns {name}\n"),
        );
        batch(
            &["-n", slot],
            "link set tap0 down\nlink set tap0 name tap9\naddr flush dev tap9\nlink set tap1 name tap0\n\
             addr add 169.254.100.1/30 dev tap0\nlink set tap0 up\n",
        );
        batch(
            &["-n", &name],
            "link set lo up\naddr add 169.254.100.2/30 dev eth0\nlink set eth0 up\n\
             route add default via 169.254.100.1\n",
        );
        Self { name }
    }

    /// Runs a program in the guest: whether it succeeded, and its output.
    pub fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// True when a TCP connection from the guest succeeds, be it late.
    pub fn reaches(&self, address: &str, port: u16) -> bool {
        self.connects_within("5", address, port)
    }

    /// True when no TCP connection from the guest succeeds. Packets that are dropped
    /// have no answer to wait for, so this waits several times as long as one takes.
    pub fn is_kept_from(&self, address: &str, port: u16) -> bool {
        !self.connects_within("0.4", address, port)
    }

    fn connects_within(&self, seconds: &str, address: &str, port: u16) -> bool {
        let script = format!("exec 3<>/dev/tcp/{address}/{port}");
        self.run(&["timeout", seconds, "bash", "-c", &script]).0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Lines of a namespace's connection table, the root namespace's without a name, that contain `part`.
pub fn tracked(namespace: Option<&str>, part: &str) -> Vec<String> {
    let mut command = vec!["cat", "/proc/net/nf_conntrack"];
    if let Some(name) = namespace {
        command.splice(..0, ["ip", "netns", "exec", name]);
    }
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let listing = String::from_utf8(output.stdout).unwrap();
    listing.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

/// Runs a script of `ip` commands.
pub fn batch(arguments: &[&str], script: &str) {
    let mut ip = Command::new("ip");
    let mut child = ip.args(arguments).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
}

/// A program in a namespace, killed when dropped.
pub struct Program(pub std::process::Child);

impl Program {
    pub fn start(namespace: &str, arguments: &[&str]) -> Self {
        let mut ip = Command::new("ip");
        Self(ip.args(["netns", "exec", namespace]).args(arguments).stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace behind the host that plays the internet: every address given is served there on port 8080. The
/// host is on a link with it, 198.41.<third>.0/30, and routes to the addresses.
pub struct Internet {
    /// Lines of the server: the address each connection came from.
    pub lines: std::io::Lines<BufReader<ChildStdout>>,
    _server: Program,
}

impl Internet {
    pub fn new(world: &World, third: u8, addresses: &[&str]) -> Self {
        let prefix = &world.0.prefix;
        let (far, near) = (format!("{prefix}-far"), format!("{prefix}-net"));
        batch(
            &[],
            &format!(
                "netns add {far}\nlink add {near} type veth peer name eth0 netns {far}\n\
                 addr add 198.41.{third}.1/30 dev {near}\nlink set {near} up\n"
            ),
        );
        batch(
            &["-n", &far],
            &format!(
                "link set lo up\naddr add 198.41.{third}.2/30 dev eth0\nlink set eth0 up\n\
                 route add default via 198.41.{third}.1\n"
            ),
        );
        for address in addresses {
            batch(&["-n", &far], &format!("addr add {address}/32 dev lo\n"));
            batch(&[], &format!("route add {address}/32 via 198.41.{third}.2\n"));
        }
        let serve = "import socket\ns=socket.create_server(('0.0.0.0',8080))\nprint('up',flush=True)\n\
                     while True:\n c,a=s.accept()\n print(a[0],flush=True)\n c.close()";
        let mut server = Program::start(&far, &["python3", "-c", serve]);
        let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "up");
        Self { lines, _server: server }
    }
}
