"""Where tokens come from: arrays, files of them, shards, folders of 1X's, the hub; and synthetic ones."""
