output "ready" {
  description = "What a port needs; known only when the network has its way out."
  value = {
    network_id         = local.make_network ? openstack_networking_network_v2.lab[0].id : var.network_id
    subnet_id          = local.make_network ? openstack_networking_subnet_v2.lab[0].id : ""
    security_group_ids = [openstack_networking_secgroup_v2.server.id]
  }
  depends_on = [openstack_networking_router_interface_v2.lab]
}

output "makes" {
  description = "What is made here, by the names in adopt.tf of the root."
  value = concat(
    local.make_network ? ["network", "subnet", "router_interface"] : [],
    local.make_router ? ["router"] : [],
    [for rule in keys(local.rules) : "rule ${rule}"],
  )
}
