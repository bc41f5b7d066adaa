//! A network namespace with a tap for one microVM; removed when dropped.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

const HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);

/// Longest wait for a connection or an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Owns the namespace.
pub struct Network {
    /// Its name under /run/netns.
    pub name: String,
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

impl Network {
    /// Makes the namespace and its tap.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let network = Self { name: name.to_owned() };
        ip(&["-n", name, "tuntap", "add", "tap0", "mode", "tap"])?;
        ip(&["-n", name, "link", "set", "tap0", "address", "06:00:a9:fe:64:01"])?;
        ip(&["-n", name, "addr", "add", "169.254.100.1/30", "dev", "tap0"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "link", "set", "tap0", "up"])?;
        if std::env::var_os("TORPOR_TEST_STATIC_NEIGHBOUR").is_some() {
            ip(&["-n", name, "neigh", "add", "169.254.100.2", "lladdr", "06:00:a9:fe:64:02", "dev", "tap0"])?;
        }
        Ok(network)
    }

    /// Connects from inside the namespace.
    pub fn connect(&self, port: u16, timeout: Duration) -> Result<TcpStream> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        // setns is for one thread, so the thread ends with the connection.
        let connecting = std::thread::spawn(move || -> Result<TcpStream> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let stream = TcpStream::connect_timeout(&SocketAddr::from((GUEST, port)), timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(stream)
        });
        connecting.join().ok().context("the connecting thread panicked")?
    }

    /// Listens inside the namespace, on the host's side of the link.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        let listening = std::thread::spawn(move || -> Result<TcpListener> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind((HOST, port))?)
        });
        listening.join().ok().context("the listening thread panicked")?
    }

    /// One HTTP/1.0 exchange; the whole answer.
    pub fn http_get(&self, port: u16, path: &str) -> Result<String> {
        let mut stream = self.connect(port, TIMEOUT)?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run ip")?;
    ensure!(status.success(), "ip {arguments:?} failed");
    Ok(())
}
