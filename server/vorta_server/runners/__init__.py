"""Runners: what computes a step on a device."""
