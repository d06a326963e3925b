//! What the kernel lets this process do.

/// Whether this process has CAP_NET_ADMIN (effective).
pub fn may_configure() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    has_capability(CAP_NET_ADMIN)
}

/// Whether this process has CAP_SYS_ADMIN (effective): it may work inside the network namespaces of others.
pub fn may_enter_namespaces() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    has_capability(CAP_SYS_ADMIN)
}

/// Whether this process has CAP_NET_BIND_SERVICE or the kernel lets anyone bind `port`.
pub fn may_bind(port: u16) -> bool {
    port >= first_free_port()
}

/// The first port that the kernel lets this process bind; 0 where all are free.
pub fn first_free_port() -> u16 {
    const CAP_NET_BIND_SERVICE: u32 = 10;
    /// The kernel's default.
    const USUAL: u16 = 1024;
    if has_capability(CAP_NET_BIND_SERVICE) {
        return 0;
    }
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}

fn has_capability(bit: u32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & (1 << bit) != 0)
}
