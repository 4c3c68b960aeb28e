"""How the ranks meet: every rank finds rank 0, and rank 0 waits until all have come.

    another rank                                  rank 0
      | hello: version, rank, world, key, device, …  |
      | - - - - - - - - - - - - - - - - - - - - - ->|   another key: closed. The rank tries the next port.
    |                                             |   no rank at all: closed, and a line says so
      |                               welcome: host |
      |<- - - - - - - - - - - - - - - - - - - - - - |
      | here                                        |   from now on the end of this connection is the rank's
      | - - - - - - - - - - - - - - - - - - - - - ->|   departure; until now the rank may turn elsewhere
      |                                             |   when all are here, the listener is closed
      |                  begin: address of the store|
      |<- - - - - - - - - - - - - - - - - - - - - - |

The key tells the ranks of one start from those of others: of SLURM's steps the number of job, step and
restart; where rank 0 announces itself in a launcher's store, which may outlive the ranks, a random one in
the announcement. Nothing else is kept in a launcher's store.

Cost: a connection for each rank, and three messages over it.

find_rank_0.py   one rank's way to rank 0, through a launcher's store where there is one
find.py          rank 0 listens, and another rank connects. Torch-free
listeners.py     the sockets on which rank 0 listens. Torch-free
begin.py         rank 0 waits until all have come, and tells them to begin. Torch-free
"""
