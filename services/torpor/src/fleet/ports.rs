//! Where each process of a fleet on one machine listens. The first replica of a service is where it would be alone; what
//! comes beside it has ports that nothing else of the fleet has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rpc::Role;

use super::plan::{Plan, replica};

impl Plan {
    pub fn internal(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.saturating_add(self.port_offset))
    }

    /// Where etcd's member `number` serves clients.
    pub fn etcd(&self, number: u16) -> SocketAddr {
        self.internal(if number == 1 { 7379 } else { 7360 + 2 * number })
    }

    /// Where it serves the other members.
    pub fn etcd_peer(&self, number: u16) -> SocketAddr {
        self.internal(if number == 1 { 7380 } else { 7361 + 2 * number })
    }

    /// URLs of etcd's members for replica `number` of a service: each begins with another member, so that not all clients
    /// have to find another one when the first is lost.
    pub fn etcd_urls(&self, number: u16) -> Vec<String> {
        let mut urls: Vec<String> =
            (1..=self.etcd_members).map(|member| format!("https://{}", self.etcd(member))).collect();
        urls.rotate_left(usize::from((number - 1) % self.etcd_members));
        urls
    }

    pub fn s3(&self) -> SocketAddr {
        self.internal(7390)
    }

    pub fn scheduler(&self, number: u16) -> SocketAddr {
        self.internal(if number == 1 { 7401 } else { 7700 + number })
    }

    /// Addresses of all schedulers.
    pub fn schedulers(&self) -> Vec<String> {
        (1..=self.schedulers).map(|number| self.scheduler(number).to_string()).collect()
    }

    pub fn image_builder(&self, number: u16) -> SocketAddr {
        self.internal(if number == 1 { 7402 } else { 7720 + number })
    }

    /// Addresses of all image-builders.
    pub fn image_builders(&self) -> Vec<String> {
        (1..=self.builders).map(|number| self.image_builder(number).to_string()).collect()
    }

    pub fn host_grpc(&self, number: u16) -> SocketAddr {
        self.internal(host_port(number))
    }

    pub fn host_tunnel(&self, number: u16) -> SocketAddr {
        self.internal(host_port(number) + 1)
    }

    /// Where replica `number` of a service, or a host-agent, serves its metrics.
    pub fn metrics(&self, service: Role, number: u16) -> SocketAddr {
        let port = match service {
            Role::HostAgent => return self.internal(7510 + number),
            Role::Scheduler => 1,
            Role::ImageBuilder => 2,
            _ => 3,
        };
        self.internal(if number == 1 { 7500 + port } else { 7800 + 10 * number + port })
    }

    /// Where edge `number` serves the endpoints.
    pub fn edge(&self, number: u16) -> Vec<SocketAddr> {
        let given = if self.edge_addresses.is_empty() { &self.loopback } else { &self.edge_addresses };
        given.iter().map(|address| SocketAddr::new(*address, self.edge_port_of(number))).collect()
    }

    /// Where edge `number` can be reached from this machine.
    pub fn edge_reachable(&self, number: u16) -> SocketAddr {
        let first = self.edge_addresses.first().copied();
        let address = first.filter(|address| !address.is_unspecified());
        SocketAddr::new(address.unwrap_or(Ipv4Addr::LOCALHOST.into()), self.edge_port_of(number))
    }

    fn edge_port_of(&self, number: u16) -> u16 {
        if number == 1 { self.edge_port } else { self.internal(7740 + number).port() }
    }

    /// Where edge `number` serves the AWS-compatible API.
    pub fn api(&self, number: u16) -> Vec<SocketAddr> {
        let port = if number == 1 { self.api_port } else { self.internal(7760 + number).port() };
        self.loopback.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }

    /// Every address something will listen on, with its component.
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let mut all = vec![("s3".to_owned(), self.s3())];
        let mut add = |name: String, addresses: Vec<SocketAddr>| {
            all.extend(addresses.into_iter().map(|address| (name.clone(), address)));
        };
        for number in 1..=self.etcd_members {
            add(replica("etcd", number), vec![self.etcd(number), self.etcd_peer(number)]);
        }
        for number in 1..=self.schedulers {
            let metrics = self.metrics(Role::Scheduler, number);
            add(replica("scheduler", number), vec![self.scheduler(number), metrics]);
        }
        for number in 1..=self.builders {
            let metrics = self.metrics(Role::ImageBuilder, number);
            add(replica("image-builder", number), vec![self.image_builder(number), metrics]);
        }
        for number in 1..=self.edges {
            let metrics = [self.metrics(Role::EdgeProxy, number)];
            let addresses = self.edge(number).into_iter().chain(self.api(number)).chain(metrics);
            add(replica("edge-proxy", number), addresses.collect());
        }
        for number in 1..=self.hosts {
            let metrics = self.metrics(Role::HostAgent, number);
            add(
                format!("host-agent-{number}"),
                vec![self.host_grpc(number), self.host_tunnel(number), metrics],
            );
        }
        all.retain(|(name, _)| self.wants(name));
        all
    }
}

/// Port of a host's gRPC server; the one of its tunnels follows. Those of the services' metrics lie between the ninth's
/// and the tenth's.
fn host_port(number: u16) -> u16 {
    let first = if number < 10 { 7400 } else { 7500 };
    first + 10 * number
}

#[cfg(test)]
mod tests {
    use crate::fleet::plan::tests::plan;

    #[test]
    fn ports_of_all_listeners_differ() {
        let replicas = ["--schedulers", "5", "--edges", "5", "--builders", "5", "--etcd-members", "5"];
        for (line, count) in [
            (&["--hosts", "8"][..], 34),
            (&["--hosts", "16"], 58),
            (&[&["--hosts", "16", "--port-offset", "3000"][..], &replicas].concat(), 94),
        ] {
            let listeners = plan(line).listeners();
            let mut ports: Vec<u16> =
                listeners.iter().filter(|(_, a)| a.is_ipv4()).map(|(_, a)| a.port()).collect();
            assert_eq!(ports.len(), count, "{line:?}");
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), count, "{line:?}");
            assert!(listeners.len() > count, "endpoints and API on [::1] too");
        }
    }

    #[test]
    fn the_first_replica_is_where_it_would_be_alone() {
        let (one, three) =
            (plan(&["--hosts", "2"]), plan(&["--schedulers", "3", "--edges", "2", "--hosts", "2"]));
        let (one, three) = (one.listeners(), three.listeners());
        assert!(one.iter().all(|listener| three.contains(listener)), "{one:?}");
        assert!(three.iter().any(|(name, _)| name == "edge-proxy-2"), "{three:?}");
    }

    #[test]
    fn each_replica_begins_with_another_member_of_etcd() {
        let plan = plan(&["--etcd-members", "3"]);
        let first = |number| plan.etcd_urls(number)[0].clone();
        assert_eq!(first(1), "https://127.0.0.1:7379");
        assert_ne!(first(2), first(1));
        assert_eq!(first(4), first(1));
        assert_eq!(plan.etcd_urls(3).len(), 3);
    }
}
