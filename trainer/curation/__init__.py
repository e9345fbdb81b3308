"""A large pool of images to a list worth training on; each step is a function on vectors of any kind.

The steps are those of DINOv2's data (Oquab et al., 2023, section 3) and of Vo et al., 2024, on balance without labels:

    inputs, embed  images and indexes -> vectors in shards on disk (embeddings)
    deduplicate    one image of each group of copies, none near an evaluation set (cells, neighbours, components)
    retrieve       what resembles images chosen by hand
    balance        as much of the rare as of the frequent (kmeans)
    pipeline       all of it; outcome and page tell what became of each image

Past one machine. Vectors lie in shards, the graph is made a shard of queries at a time, and no shard's result depends
on another's: `neighbours.search_shard(folder, cells_folder, number)` reads a shared folder and writes one file, whole
or not at all. `--workers` does this with processes of one machine, `--ray` on a cluster; what a lost worker leaves is
done again. docs/curation.md has the plan for 1 billion images: machines, hours, bytes over the network.
"""
