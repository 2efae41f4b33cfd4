"""The views: pure functions from an answer, the time and the zone to blocks of a screen."""
