//! Which TCP ports listen, from /proc/net/tcp and tcp6.

use std::collections::BTreeSet;
use std::fs;

/// Value of the state column for a listening socket.
const LISTEN: &str = "0A";

/// Ports that listen on an address an app's traffic can reach, except `own`.
pub fn listening_ports(own: &[u16]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no tcp6.
        if let Ok(table) = fs::read_to_string(path) {
            ports.extend(parse_listening(&table));
        }
    }
    ports.retain(|port| !own.contains(port));
    ports
}

/// Ports of the listening sockets in one table. Lines that do not parse are skipped.
fn parse_listening(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let local = columns.next()?;
        let state = columns.nth(1)?;
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
    })
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
";

    #[test]
    fn listening_ports_of_a_table() {
        for (table, expected) in
            [("", vec![]), ("header\n", vec![]), (TCP, vec![8080, 80]), (TCP6, vec![9000])]
        {
            assert_eq!(parse_listening(table).collect::<Vec<_>>(), expected);
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
