"""List and read archives: directories, tar, tar.gz, zip, manifests and inventories on any fsspec storage.

``listing.list_batches`` plans, ``reading.read_inputs`` reads what was planned; ``storage`` says where the
archive lies. One module per container kind; members are streamed and nothing is unpacked to disk. Containers
inside containers are not opened: they are inputs of their own, which decoding refuses by name.
"""
