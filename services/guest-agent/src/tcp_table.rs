//! Where TCP sockets listen, from /proc/net/tcp and tcp6.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Value of the state column for a listening socket.
const LISTEN: &str = "0A";

/// Most bytes of one table that are read. The kernel names the listening sockets first, in lines of 150 bytes (180 in tcp6):
/// this holds a thousand of them, however many connections the guest has.
const TABLE_BYTES_MAX: u64 = 192 * 1024;

/// Ports that listen on an address an app's traffic can reach, except `own`.
pub fn listening_ports(own: &[u16]) -> BTreeSet<u16> {
    let ports = listening_addresses().into_iter().map(|address| address.port());
    ports.filter(|port| !own.contains(port)).collect()
}

/// The addresses of all listening sockets.
pub fn listening_addresses() -> Vec<SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter();
    // A kernel without IPv6 has no tcp6.
    tables
        .filter_map(|path| read(path).ok())
        .flat_map(|table| parse_listening(&table).collect::<Vec<_>>())
        .collect()
}

fn read(path: &str) -> io::Result<String> {
    let mut table = String::new();
    File::open(path)?.take(TABLE_BYTES_MAX).read_to_string(&mut table)?;
    Ok(table)
}

/// Addresses of the listening sockets in one table. Lines that do not parse are skipped.
fn parse_listening(table: &str) -> impl Iterator<Item = SocketAddr> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let local = columns.next()?;
        let state = columns.nth(1)?;
        let (address, port) = local.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then(|| Some(SocketAddr::new(parse_address(address)?, port)))?
    })
}

/// An address as the tables write it: 32-bit words in hexadecimal digits, each in the machine's byte order. An IPv4 address
/// in its IPv6 form is an IPv4 address.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => word(0).map(IpAddr::from),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0 100 0 0 10 0
   2: 0264FEA9:0400 0164FEA9:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 22 1 0 20 4 30 10 -1
garbage
   3: 0100007F:ZZZZ 00000000:0000 0A
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:2328 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000200007F:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000
";

    #[test]
    fn listening_addresses_of_a_table() {
        let cases: [(&str, &[&str]); 4] = [
            ("", &[]),
            ("header\n", &[]),
            (TCP, &["127.0.0.1:8080", "0.0.0.0:80"]),
            (TCP6, &["[::]:9000", "[::1]:8080", "127.0.0.2:8081"]),
        ];
        for (table, expected) in cases {
            let addresses: Vec<String> = parse_listening(table).map(|address| address.to_string()).collect();
            assert_eq!(addresses, expected);
        }
    }

    #[test]
    fn a_real_listener_is_found_and_own_ports_are_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening_ports(&[]).contains(&port));
        assert!(!listening_ports(&[port]).contains(&port));
    }
}
