//! What ZooKeeper does to those who use it.
