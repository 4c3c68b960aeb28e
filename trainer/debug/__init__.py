"""`germinal train --debug`: a run looked into, without writing into its folder."""
