//! How clients on this machine reach the fleet unaided: the port that HTTPS URLs do not name, both loopback addresses, and
//! names that the system's resolver knows.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::plan::Plan;

/// Longest wait for the system's resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Settles the addresses and the port of the endpoints by what is free on this machine. Returns what a person should know.
pub fn settle(plan: &mut Plan) -> Option<String> {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        // A machine without IPv6.
        plan.loopback.retain(IpAddr::is_ipv4);
    }
    let other = plan.edge_port_else.filter(|_| plan.wants("edge-proxy"))?;
    let taken = plan.edge(1).into_iter().find_map(|address| TcpListener::bind(address).err());
    let (wished, error) = (plan.edge_port, taken?);
    plan.edge_port = other;
    Some(format!(
        "port {wished} is not free ({error}), so the endpoints are on port {other}; free {wished}, or choose with --edge-port"
    ))
}

/// Asks the system's resolver for a name of an endpoint, as every program does. Returns what a person should do when the
/// name does not lead to the edge.
pub async fn check_names(domain: String, edge: Vec<SocketAddr>) -> Option<String> {
    let name = format!("{}.{domain}", uuid::Uuid::nil());
    let asked = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 0))).await;
    let found = match asked {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", RESOLVE_TIMEOUT.as_secs())),
    };
    let on_loopback = edge.iter().all(|address| address.ip().is_loopback());
    complaint(&domain, on_loopback, found)
}

fn complaint(domain: &str, on_loopback: bool, found: Result<Vec<IpAddr>, String>) -> Option<String> {
    let wrong = match found {
        Ok(found) if found.is_empty() => "do not resolve".to_owned(),
        Ok(found) => {
            let strange = found.iter().find(|address| on_loopback && !address.is_loopback())?;
            format!("lead to {strange} and not to this machine")
        }
        Err(error) => format!("do not resolve ({error})"),
    };
    let next = if domain == "localhost" || domain.ends_with(".localhost") {
        "install libnss-myhostname (deploy/packages does), and see that hosts: in /etc/nsswitch.conf names myhostname".to_owned()
    } else {
        format!("let *.{domain} lead to the edge in your DNS")
    };
    Some(format!(
        "names under {domain} {wrong}: programs that ask the system's resolver do not reach the endpoints; {next}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::plan::tests::plan;

    #[test]
    fn a_taken_port_gives_way_unless_somebody_chose_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut free = Plan { edge_port: port, edge_port_else: Some(8443), ..plan(&[]) };
        let said = settle(&mut free).unwrap();
        assert_eq!(free.edge_port, 8443);
        assert!(
            said.contains(&format!("port {port} is not free")) && said.contains("on port 8443"),
            "{said}"
        );
        let mut chosen = plan(&["--edge-port", &port.to_string()]);
        assert_eq!(settle(&mut chosen), None);
        assert_eq!(chosen.edge_port, port);
        drop(taken);
        let mut free = Plan { edge_port: port, edge_port_else: Some(8443), ..plan(&[]) };
        assert_eq!((settle(&mut free), free.edge_port), (None, port));
    }

    #[test]
    fn names_that_lead_elsewhere_are_complained_of() {
        let addresses = |texts: &[&str]| Ok(texts.iter().map(|text| text.parse().unwrap()).collect());
        for (domain, on_loopback, found, said) in [
            ("microvms.localhost", true, addresses(&["127.0.0.1", "::1"]), None),
            ("microvms.localhost", true, addresses(&[]), Some("libnss-myhostname")),
            ("microvms.localhost", true, Err("no such name".to_owned()), Some("(no such name)")),
            ("microvms.localhost", true, addresses(&["127.0.0.1", "192.0.2.1"]), Some("lead to 192.0.2.1")),
            ("vms.example.com", false, addresses(&["192.0.2.1"]), None),
            ("vms.example.com", false, Err("no such name".to_owned()), Some("*.vms.example.com")),
        ] {
            let complaint = complaint(domain, on_loopback, found.clone());
            assert_eq!(complaint.is_some(), said.is_some(), "{domain} {found:?}: {complaint:?}");
            let complaint = complaint.unwrap_or_default();
            assert!(complaint.contains(said.unwrap_or_default()), "{complaint}");
        }
    }
}
