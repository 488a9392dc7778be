//! Fixtures: what the tests stand on, as values that clean up after themselves.

pub mod bench;
pub mod bpf;
pub mod capture;
pub mod cgroup;
pub mod corpus;
pub mod craft;
pub mod daemon;
pub mod device;
pub mod disk;
pub mod document;
pub mod handler;
pub mod leaks;
pub mod load;
pub mod loaded;
pub mod manager;
pub mod need;
pub mod neighbour;
pub mod netns;
pub mod proxy;
pub mod random;
pub mod sockets;
pub mod stats_server;
pub mod terminal;
pub mod vm;
pub mod wait;
pub mod wire;
