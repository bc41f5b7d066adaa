//! Who the app runs as: Docker's rules for `USER`, from the image's own /etc/passwd and /etc/group.

use std::fs;

/// Ids and home of the app's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary group ids, without the primary.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves `specification` against the files of the root file system.
pub fn resolve_in_root(specification: &str) -> Result<User, String> {
    // An image without these files has only ids.
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    resolve(specification, &passwd, &group)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else {
            return None;
        };
        Some(Entry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// `(name, id, members)` of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, rest @ ..] = &fields[..] else {
            return None;
        };
        Some((*name, id.parse().ok()?, rest.first().copied().unwrap_or_default()))
    })
}

/// `name[:group]` or ids; empty is root. A name wins over a number that looks like it.
fn resolve(specification: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, chosen_group) = match specification.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (specification, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = entries(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| entries(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, own_gid, home, name) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home, entry.name),
        (None, Some(uid)) => (uid, 0, "/", ""),
        (None, None) => return Err(format!("the image has no user {user:?}")),
    };
    let gid = match chosen_group {
        None => own_gid,
        Some(wanted) => groups(group)
            .find_map(|(name, id, _)| (name == wanted).then_some(id))
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("the image has no group {wanted:?}"))?,
    };
    // A group that was chosen is the only one, as in Docker.
    let groups = match chosen_group {
        Some(_) => Vec::new(),
        None => groups(group)
            .filter(|(_, id, members)| {
                *id != gid && !name.is_empty() && members.split(',').any(|member| member == name)
            })
            .map(|(_, id, _)| id)
            .collect(),
    };
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        app:x:1000:1001:App:/srv/app:/bin/sh\nbroken\n7:x:70:71::/seven:\nnohome:x:5:5:::\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:app,other\nstaff:x:50:app\napp:x:1001:app\nbroken:x\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn specifications() {
        for (specification, expected) in [
            ("", Some(user(0, 0, &[], "/root"))),
            ("root", Some(user(0, 0, &[], "/root"))),
            ("app", Some(user(1000, 1001, &[4, 50], "/srv/app"))),
            ("1000", Some(user(1000, 1001, &[4, 50], "/srv/app"))),
            ("app:staff", Some(user(1000, 50, &[], "/srv/app"))),
            ("app:77", Some(user(1000, 77, &[], "/srv/app"))),
            ("app:", Some(user(1000, 1001, &[4, 50], "/srv/app"))),
            (":staff", Some(user(0, 50, &[], "/root"))),
            ("4242", Some(user(4242, 0, &[], "/"))),
            ("4242:4343", Some(user(4242, 4343, &[], "/"))),
            ("7", Some(user(70, 71, &[], "/seven"))),
            ("nohome", Some(user(5, 5, &[], "/"))),
            ("nobody", None),
            ("app:nogroup", None),
            ("-1", None),
            ("4294967296", None),
        ] {
            assert_eq!(resolve(specification, PASSWD, GROUP).ok(), expected, "{specification:?}");
        }
        assert_eq!(resolve("", "", ""), Ok(user(0, 0, &[], "/")));
    }
}
