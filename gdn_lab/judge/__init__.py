"""Is a kernel right in every corner that an engine reaches, and can its times be believed?

judging.findings(name, device)      a line for each check of one variant, in this process
apart.judged(request)               the same in a process of its own, which a kernel may crash or hang
"""
