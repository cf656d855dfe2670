"""What the procedural worlds share: meshes, textures, rays and shading, photographs, folders made once and kept."""
