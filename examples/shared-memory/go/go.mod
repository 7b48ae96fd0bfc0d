module negative

go 1.24

require zeno v0.0.0

replace zeno => ./zeno
