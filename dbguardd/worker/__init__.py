"""The worker's two halves: how they are started, connected by the seam, watched and cancelled."""
