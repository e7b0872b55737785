"""The world of a scene: styles of cities, street plan, blocks and their solids, in metres."""
