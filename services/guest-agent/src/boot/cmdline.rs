//! The agent's settings: `torpor.<name>=<value>` on the kernel's command line.

/// What the command line sets, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `torpor.agent_port`: TCP port of the control connection.
    pub agent_port: u16,
    /// `torpor.relay_port`: TCP port of the relay to guest loopback.
    pub relay_port: u16,
    /// `torpor.shell_port`: TCP port of the shells.
    pub shell_port: u16,
    /// `torpor.root`: block device of the root file system (ext4).
    pub root: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            agent_port: guest_link::CONTROL_PORT,
            relay_port: guest_link::RELAY_PORT,
            shell_port: guest_link::SHELL_PORT,
            root: "/dev/vda".to_owned(),
        }
    }
}

impl Settings {
    /// Reads a command line. Words that are not the agent's, and values that do not
    /// parse, leave the default: a guest that boots and says so beats one that does not.
    pub fn parse(line: &str) -> Self {
        let mut settings = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("torpor.agent_port", value)) => set_port(&mut settings.agent_port, value),
                Some(("torpor.relay_port", value)) => set_port(&mut settings.relay_port, value),
                Some(("torpor.shell_port", value)) => set_port(&mut settings.shell_port, value),
                Some(("torpor.root", value)) if value.starts_with("/dev/") => {
                    value.clone_into(&mut settings.root)
                }
                _ => {}
            }
        }
        settings
    }
}

fn set_port(port: &mut u16, value: &str) {
    match value.parse() {
        Ok(value) if value != 0 => *port = value,
        _ => crate::console::say(&format!("ignored port {value:?} on the kernel's command line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_command_line() {
        let default = Settings::default();
        for (line, expected) in [
            ("", default.clone()),
            ("console=ttyS0 quiet torpor.other=1", default.clone()),
            ("torpor.agent_port=0 torpor.relay_port=x torpor.root=/etc", default.clone()),
            (
                "quiet torpor.agent_port=2000 torpor.relay_port=2001 torpor.shell_port=2002 torpor.root=/dev/vdb\n",
                Settings {
                    agent_port: 2000,
                    relay_port: 2001,
                    shell_port: 2002,
                    root: "/dev/vdb".to_owned(),
                },
            ),
        ] {
            assert_eq!(Settings::parse(line), expected, "{line}");
        }
    }
}
