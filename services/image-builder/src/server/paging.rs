//! Pages of lists. A token names the last item of the page before it.

use model::limits::PAGE_SIZE_MAX;
use tonic::Status;

/// Cuts one page out of `items`; `key` names an item for the next token. An item
/// that went meanwhile ends the listing with an error, not with a wrong page.
pub(super) fn page<T>(
    items: Vec<T>,
    size: u32,
    token: &str,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, String), Status> {
    let invalid = |field: &str, text: &str| api::errors::invalid(&[(field.to_owned(), text.to_owned())]);
    if size > PAGE_SIZE_MAX {
        return Err(invalid("page_size", "must be 0 to 50"));
    }
    let size = if size == 0 { PAGE_SIZE_MAX } else { size } as usize;
    let start = if token.is_empty() {
        0
    } else {
        let last = decode(token).ok_or_else(|| invalid("page_token", "is none of ours"))?;
        let at = items.iter().position(|item| key(item) == last);
        at.ok_or_else(|| invalid("page_token", "names an item that is gone; start over"))? + 1
    };
    let more = items.len() > start + size;
    let page: Vec<T> = items.into_iter().skip(start).take(size).collect();
    let next = page
        .last()
        .filter(|_| more)
        .map(|item| encode(&key(item)))
        .unwrap_or_default();
    Ok((page, next))
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Option<String> {
    let digits: Option<Vec<u8>> = token
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    String::from_utf8(digits?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let items: Vec<u32> = (0..7).collect();
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let (some, next) = page(items.clone(), 3, &token, u32::to_string).unwrap();
            seen.extend(some);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, items);
        assert!(page(items.clone(), 51, "", u32::to_string).is_err());
        assert!(page(items.clone(), 3, "zz", u32::to_string).is_err());
        assert!(page(items, 3, &encode("99"), u32::to_string).is_err());
        assert_eq!(
            page(Vec::<u32>::new(), 0, "", u32::to_string).unwrap(),
            (vec![], String::new())
        );
    }
}
