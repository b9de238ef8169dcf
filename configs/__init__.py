"""The values of every named run or variant; no other package of ours is imported."""
