//! What tells two requests with the same client token apart.

use prost::Message as _;

use super::Order;

/// Digest of a request without its token. Maps have no order on the wire, so
/// they are fed in sorted.
pub(super) fn of(order: &Order) -> String {
    let mut configuration = order.configuration.clone().unwrap_or_default();
    let variables = std::mem::take(&mut configuration.environment_variables);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(order.create)]);
    let mut feed = |text: &[u8]| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    feed(order.name.as_bytes());
    feed(&configuration.encode_to_vec());
    for map in [&variables, &order.tags] {
        let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
        feed(&(sorted.len() as u64).to_le_bytes());
        for (key, value) in sorted {
            feed(key.as_bytes());
            feed(value.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::image::v1::ImageConfiguration;
    use std::collections::HashMap;

    #[test]
    fn a_request_has_one_digest_whatever_its_maps_order() {
        let order = |pairs: &[(&str, &str)]| Order {
            name: "a".to_owned(),
            configuration: Some(ImageConfiguration {
                environment_variables: pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
                ..ImageConfiguration::default()
            }),
            tags: HashMap::new(),
            client_token: "t".to_owned(),
            create: true,
        };
        let one = order(&[("A", "1"), ("B", "2"), ("C", "3")]);
        let other = order(&[("C", "3"), ("B", "2"), ("A", "1")]);
        assert_eq!(of(&one), of(&Order { client_token: "u".to_owned(), ..other }));
        assert_ne!(of(&one), of(&order(&[("A", "1"), ("B", "2")])));
        assert_ne!(of(&one), of(&Order { create: false, ..one.clone() }));
    }
}
