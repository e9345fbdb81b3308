"""Where images come from: folders, lists, tables, tar shards and addresses, each as a list of entries."""
