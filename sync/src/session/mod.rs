//! What each end does with a frame: no sockets, no clock.
