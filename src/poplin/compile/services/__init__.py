"""Services: cluster state and this node -> table `inet poplin-services`.

`endpoints` chooses who serves, `frontend` what they serve, `dispatch` how the kernel draws one of them, and
`table` keeps the elements of all Services, one Service's change at a time.
"""
