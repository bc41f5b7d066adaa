//! The app's environment and program, as container runtimes work them out.

/// PATH of an app whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment with PATH and HOME filled in. HOSTNAME is left out on purpose:
/// clones of a snapshot have host names of their own, and an environment cannot change.
pub fn complete(given: &[String], home: &str) -> Vec<String> {
    let mut environment: Vec<String> = given.iter().filter(|entry| entry.contains('=')).cloned().collect();
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", home)] {
        if value_of(&environment, name).is_none() {
            environment.push(format!("{name}={value}"));
        }
    }
    environment
}

/// The paths at which to try a program, in order.
pub fn candidates(program: &str, environment: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = value_of(environment, "PATH").unwrap_or(DEFAULT_PATH);
    let directories = path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
    directories.map(|directory| format!("{directory}/{program}")).collect()
}

fn value_of<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    // The last entry wins, as in a shell.
    environment.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn path_and_home_are_filled_in_once() {
        for (given, expected) in [
            (vec![], vec![format!("PATH={DEFAULT_PATH}"), "HOME=/root".to_owned()]),
            (strings(&["PATH=/x", "HOME=/h", "no-value"]), strings(&["PATH=/x", "HOME=/h"])),
            (strings(&["PATHS=1", "HOME="]), strings(&["PATHS=1", "HOME=", &format!("PATH={DEFAULT_PATH}")])),
        ] {
            assert_eq!(complete(&given, "/root"), expected);
        }
    }

    #[test]
    fn programs_are_looked_for_in_the_path() {
        let environment = strings(&["PATH=/no", "PATH=/a::/b"]);
        for (program, expected) in
            [("x", vec!["/a/x", "./x", "/b/x"]), ("/bin/x", vec!["/bin/x"]), ("./x", vec!["./x"])]
        {
            assert_eq!(candidates(program, &environment), expected, "{program}");
        }
    }
}
