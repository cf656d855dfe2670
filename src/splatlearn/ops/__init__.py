"""Operations on packed rows: voxels and sparse convolution, normalisation, neighbours, sums over ranks."""
