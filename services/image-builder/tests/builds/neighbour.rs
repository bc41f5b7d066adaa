//! Another machine on a private network of this one: a namespace with a server in it.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use model::Subnet;
use nix::sched::{CloneFlags, setns};

/// What the server says to everybody who connects.
pub const GREETING: &str = "private-greeting";
const OURS: Ipv4Addr = Ipv4Addr::new(10, 233, 77, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 233, 77, 2);

pub struct Neighbour {
    name: String,
    server: SocketAddr,
}

impl Neighbour {
    pub fn start() -> Self {
        let name = format!("tp-nb-{}", std::process::id());
        let link = format!("tpnb{}", std::process::id() % 100_000);
        let ip = |arguments: &str| {
            let done = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
            assert!(done.success(), "ip {arguments}");
        };
        ip(&format!("netns add {name}"));
        // From here on it is taken down, whatever fails.
        let mut neighbour = Self { name, server: SocketAddr::from((THEIRS, 0)) };
        let name = &neighbour.name;
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add {OURS}/30 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} addr add {THEIRS}/30 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let listener = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind((THEIRS, 0)).unwrap()
        });
        let listener = listener.join().unwrap();
        neighbour.server = listener.local_addr().unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let _ = client.and_then(|mut client| writeln!(client, "{GREETING}"));
            }
        });
        neighbour
    }

    pub fn server(&self) -> SocketAddr {
        self.server
    }

    pub fn network(&self) -> Subnet {
        Subnet::new(THEIRS, 30)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // The link goes with its other end.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
