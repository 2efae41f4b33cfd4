"""The two halves of a worker: how they are started, joined by the seam, watched and cancelled."""
