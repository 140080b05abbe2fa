"""Other engines under the same measurement: each module drives one, imported only when it is measured."""
