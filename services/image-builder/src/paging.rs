//! Pages of lists. A token names the list and the last item of the page before
//! it; the next page goes on behind that item, whether it is still there or not.

use model::limits::PAGE_SIZE_MAX;

use crate::refusal::Refusal;

/// The page a caller wants: its size, 0 for the largest, and the token of the page
/// before it, empty for the first.
pub type Page<'a> = (u32, &'a str);

/// What stands between list and item in a token; in neither of them.
const SEPARATOR: char = '\0';

/// Cuts one page out of `items` of the list called `list`, which are in the
/// order of their keys; no two have the same.
pub fn page<T>(
    list: &str,
    items: Vec<T>,
    (size, token): Page<'_>,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, String), Refusal> {
    if size > PAGE_SIZE_MAX {
        return Err(Refusal::invalid("page_size", "must be 0 to 50"));
    }
    let size = if size == 0 { PAGE_SIZE_MAX } else { size } as usize;
    let last = match token {
        "" => None,
        token => {
            let named = decode(token).and_then(|text| {
                let (of, last) = text.split_once(SEPARATOR)?;
                (of == list).then(|| last.to_owned())
            });
            Some(named.ok_or_else(|| Refusal::invalid("page_token", "is none of this list's"))?)
        }
    };
    let mut rest = items.into_iter().skip_while(|item| last.as_ref().is_some_and(|last| key(item) <= *last));
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let more = rest.next().is_some();
    let next = page
        .last()
        .filter(|_| more)
        .map(|item| encode(&format!("{list}{SEPARATOR}{}", key(item))))
        .unwrap_or_default();
    Ok((page, next))
}

/// A key that puts the higher number first.
pub fn sort_key_desc(number: u64) -> String {
    format!("{:020}", u64::MAX - number)
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

    const LIST: &str = "numbers";

    fn all(items: &[u32], mut between: impl FnMut(&mut Vec<u32>)) -> Vec<u32> {
        let mut items = items.to_vec();
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (some, next) = page(LIST, items.clone(), (3, &token), u32::to_string).unwrap();
            seen.extend(some);
            if next.is_empty() {
                return seen;
            }
            token = next;
            between(&mut items);
        }
    }

    #[test]
    fn pages_cover_everything_once() {
        assert_eq!(all(&[1, 2, 3, 4, 5, 6, 7], |_| ()), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(all(&[1, 2, 3], |_| ()), [1, 2, 3], "no empty page at the end");
        assert_eq!(all(&[], |_| ()), Vec::<u32>::new());
    }

    #[test]
    fn an_item_that_goes_in_between_does_not_end_a_listing() {
        let without_last_seen = all(&[1, 2, 3, 4, 5], |items| items.retain(|item| *item != 3));
        assert_eq!(without_last_seen, [1, 2, 3, 4, 5]);
        let without_next = all(&[1, 2, 3, 4, 5], |items| items.retain(|item| *item != 4));
        assert_eq!(without_next, [1, 2, 3, 5]);
    }

    #[test]
    fn tokens_of_others_and_sizes_out_of_bounds_are_refused() {
        let items = vec![1, 2, 3, 4];
        let get = |list: &str, size, token: &str| page(list, items.clone(), (size, token), u32::to_string);
        let (_, token) = get(LIST, 2, "").unwrap();
        assert!(get(LIST, 50, &token).is_ok());
        assert!(get("others", 2, &token).is_err());
        assert!(get(LIST, 51, "").is_err());
        for bad in ["zz", "0", "6e", "é", &token[2..]] {
            assert!(get(LIST, 2, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn falling_keys_put_the_highest_first() {
        let mut numbers = vec![2, 10, 1, u64::MAX];
        numbers.sort_by_key(|number| sort_key_desc(*number));
        assert_eq!(numbers, [u64::MAX, 10, 2, 1]);
    }
}
