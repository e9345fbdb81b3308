"""A large pool of images to a list worth training on; each step is a function on vectors of any kind.

The steps are those of DINOv2's data (Oquab et al., 2023, section 3) and of Vo et al., 2024, on balance without labels:

    inputs, embed  images and indexes -> vectors in shards on disk (embeddings)
    deduplicate    one image of each group of copies, none near an evaluation set (cells, neighbours, components)
    retrieve       what resembles images chosen by hand
    balance        as much of the rare as of the frequent (kmeans)
    pipeline       all of it; outcome and page tell what became of each image

Past one machine. Vectors lie in shards, the graph is made a shard of queries at a time, and no shard's result depends
on another's: `neighbours.search_shard(folder, cells_folder, number)` reads a shared folder and writes one file, whole
or not at all. So `ray.remote(search_shard)` over the numbers does it, or under torchrun the numbers with
`number % world_size == rank`; what a lost worker leaves is done again. `--workers` does this with processes of one
machine. For 1 billion images of 512 numbers, on 64 machines with 16 cores (0.6 TFLOP/s each) and one GPU:

    embed       ViT-S at 3,000 images/s a GPU: 1e9 / (64 x 3,000) = 1.5 hours; vectors 1e9 x 512 x 2 B = 1.0 TB
    cells       32,768 of 30,500 vectors, 31 MB each. Assigning through 181 groups of centroids, 6 of them looked into:
                1e9 x (181 + 1,090) x 1,024 FLOP = 1.3 PFLOP, a minute. Sorting: each machine appends its shards'
                vectors to the cells' files, 1 TB read and written; the gather of `build_cells` needs one machine
    graph       12 cells a query: 1e9 x 12 x 30,500 x 1,024 FLOP = 375 PFLOP, 2.7 hours. 61,000 shards of 16,384
                queries, 10 s each; queries in the order of the cells share these, some 60 a shard: 2 GB to read, so
                the cells belong on local disks, 1.0 TB a machine, or 16 GB of a shard's neighbourhood in a cache
    edges       5 over the threshold an image: 5e9 x 12 B = 60 GB
    components  one process: 1e9 x 8 B = 8 GB for parents, as much again for groups; edges are streamed ten times
    balance     levels of 10 M, 500 k, 50 k, 10 k clusters. A round at the finest: k-means of 32 vectors a cluster, in
                3,162 groups and then within them, 320e6 x 2 x 3,162 x 1,024 FLOP x 10 = 21 PFLOP, 9 minutes; assigning
                through 6 groups, 1e9 x 22,000 x 1,024 FLOP = 23 PFLOP, 10 minutes. Ten rounds: 3.5 hours
"""
