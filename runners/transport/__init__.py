"""What travels between gateway and runner, and the guards in front of a runner."""
